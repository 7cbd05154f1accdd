"""Newton-Schulz iteration: approximately orthogonalises matrices, for Muon's updates.

    U = A diag(s) B^T  ->  about A B^T: every singular value s becomes 0.7..1.2

(Jordan et al., "Muon", 2024; 5 steps as in arXiv 2605.26099.)
"""

from __future__ import annotations

import torch
from torch import Tensor

# steep at 0 rather than exact: five steps bring s to about 0.7..1.2, not to 1
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def newton_schulz(X: Tensor) -> Tensor:
    """Orthogonalises a batch of matrices [k, m, n]: in fp32 on the CPU, in bf16 on CUDA."""
    a, b, c = COEFFICIENTS
    X = X.bfloat16() if X.is_cuda else X
    tall = X.shape[1] > X.shape[2]
    X = X.transpose(1, 2) if tall else X
    X = X / (torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        A = torch.bmm(X, X.transpose(1, 2))
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return (X.transpose(1, 2) if tall else X).float()
