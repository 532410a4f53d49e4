"""The matrix product in torch: every query against every entry."""

import torch
from torch import Tensor

from indexes.proposals import ProposedIndex, as_array, own_products, products_on_device
from indexes.protocol import Float32, Int64, Queries

# Entries of one product: on a processor they stay in its cache, and with many entries memory
# stays bounded.
PRODUCT_ENTRIES, PRODUCT_ENTRIES_ON_GPU = 2_048, 65_536


class ExactIndex(ProposedIndex):
    """Every query against every entry, on a device; on a GPU nothing but results leaves it."""

    def __init__(self, vectors: Float32, *, device: str | torch.device = "cpu") -> None:
        super().__init__(vectors, "exact")
        self._rows = torch.from_numpy(self._distinct).to(device)

    def _candidates(self, block: Queries, count: int) -> tuple[Float32, Int64]:
        queries = torch.as_tensor(block, device=self._rows.device)
        proposed = _nearest(queries, self._rows, count)
        places: Int64 = proposed.cpu().numpy()
        if self._rows.device.type == "cpu":
            return own_products(self._distinct, as_array(block), places), places
        return products_on_device(self._rows, queries, proposed).cpu().numpy(), places


def _nearest(queries: Tensor, rows: Tensor, count: int) -> Tensor:
    """Places of the `count` largest products of each query: int64 [queries, count], unordered."""
    products, places = [], []
    is_cpu = rows.device.type == "cpu"
    parts = torch.split(rows, PRODUCT_ENTRIES if is_cpu else PRODUCT_ENTRIES_ON_GPU)
    room = torch.empty((len(queries), len(parts[0])), device=rows.device)
    first = 0
    for part in parts:
        product = torch.mm(queries, part.T, out=room if len(part) == room.shape[1] else None)
        best = product.topk(min(count, len(part)), dim=1, sorted=False)
        products.append(best.values)
        places.append(best.indices + first)
        first += len(part)
    best = torch.cat(products, dim=1).topk(count, dim=1, sorted=False)
    return torch.cat(places, dim=1).gather(1, best.indices)
