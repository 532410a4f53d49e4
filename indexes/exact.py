"""Exact search in torch: the products of every query with every entry."""

import torch
from torch import Tensor

from indexes.proposals import ProposedIndex, as_array, own_products, products_on_device
from indexes.protocol import Float32, Int64, Queries

# Entries of one matrix product. On a CPU they stay in its cache; with many entries this bounds the
# memory.
PRODUCT_ENTRIES, PRODUCT_ENTRIES_ON_GPU = 2_048, 65_536


class ExactIndex(ProposedIndex):
    """Compares every query with every entry; from a GPU, only the results are copied back."""

    def __init__(self, vectors: Float32, *, device: str | torch.device = "cpu") -> None:
        super().__init__(vectors, "exact")
        self._entries = torch.from_numpy(self._distinct).to(device)

    def _candidates(self, block: Queries, count: int) -> tuple[Float32, Int64]:
        queries = torch.as_tensor(block, device=self._entries.device)
        proposed = _nearest(queries, self._entries, count)
        rows: Int64 = proposed.cpu().numpy()
        if self._entries.device.type == "cpu":
            return own_products(self._distinct, as_array(block), rows), rows
        return products_on_device(self._entries, queries, proposed).cpu().numpy(), rows


def _nearest(queries: Tensor, entries: Tensor, count: int) -> Tensor:
    """Rows of the `count` largest products of each query: int64 [queries, count], unordered."""
    products, rows = [], []
    is_cpu = entries.device.type == "cpu"
    parts = torch.split(entries, PRODUCT_ENTRIES if is_cpu else PRODUCT_ENTRIES_ON_GPU)
    buffer = torch.empty((len(queries), len(parts[0])), device=entries.device)
    first = 0
    for part in parts:
        product = torch.mm(queries, part.T, out=buffer if len(part) == buffer.shape[1] else None)
        best = product.topk(min(count, len(part)), dim=1, sorted=False)
        products.append(best.values)
        rows.append(best.indices + first)
        first += len(part)
    best = torch.cat(products, dim=1).topk(count, dim=1, sorted=False)
    return torch.cat(rows, dim=1).gather(1, best.indices)
