"""The matrix product in torch: every query against every entry."""

import torch

from indexes.proposals import ProposedIndex, own_products
from indexes.protocol import Float32, Int64


class ExactIndex(ProposedIndex):
    """Every query against every entry."""

    def __init__(self, vectors: Float32, *, device: str = "cpu") -> None:
        super().__init__(vectors, "exact")
        self._columns = torch.from_numpy(self._distinct).to(device).T

    def _candidates(self, block: Float32, count: int) -> tuple[Float32, Int64]:
        product = torch.from_numpy(block).to(self._columns.device) @ self._columns
        places: Int64 = product.topk(count, dim=1, sorted=False).indices.cpu().numpy()
        return own_products(self._distinct, block, places), places
