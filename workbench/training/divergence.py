"""How far one distribution over tokens is from another, and the few likeliest tokens that stand for all.

Every function takes log-probabilities ``(rows, tokens)``, the teacher's first, and gives nats, ``(rows,)``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ALMOST_ALL = -1e-6  # log of the most that the likeliest tokens may hold, so that the rest keeps a finite logarithm


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student): everything that the teacher finds likely must be likely for the student.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.
    """
    weights = teacher.exp()
    return (weights * (teacher - student).masked_fill(weights == 0, 0.0)).sum(dim=-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher): nothing may be likely for the student that the teacher finds unlikely.

    Source: Gu et al., "MiniLLM", 2024.
    """
    return forward_kl(student, teacher)


def jensen_shannon(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """Both divergences from the mixture ``beta * teacher + (1 - beta) * student``, weighted alike.

    For ``beta`` near 0 it is ``beta`` times the forward KL, near 1 ``1 - beta`` times the reverse.
    Source: Agarwal et al., "On-policy distillation of language models", 2024, equation 1.
    """
    mixed = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * forward_kl(teacher, mixed) + (1 - beta) * forward_kl(student, mixed)


def likeliest(logs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and indices of the ``k`` likeliest tokens, each ``(rows, k)``."""
    found = logs.topk(min(k, logs.shape[-1]), dim=-1)
    return found.values, found.indices


def with_rest(logs: Tensor) -> Tensor:
    """Some tokens' log-probabilities ``(rows, k)`` and that of all others together: ``(rows, k + 1)``.

    A divergence of these is a lower bound of that over all tokens, and exact where the two agree on how the rest is
    divided. Cutting the rest off would teach the student to be too sure (Anshumann et al., "Sparse logit
    sampling", 2025).
    """
    held = logs.logsumexp(dim=-1, keepdim=True).clamp(max=ALMOST_ALL)
    return torch.cat([logs, torch.log(-torch.expm1(held))], dim=-1)


def states_apart(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared distance of hidden states ``(rows, hidden)``, each brought to length 1: 0 to 4.

    Source: Sun et al., "Patient knowledge distillation", 2019, equation 7.
    """
    apart = F.normalize(teacher, dim=-1) - F.normalize(student, dim=-1)
    return apart.square().sum(dim=-1)
