"""Diffusion generative flow samplers, DGFS (Zhang, Chen, Liu, Courville & Bengio, 2024)."""

import dataclasses
from typing import Any, ClassVar

from consistent_samplers.algorithms.objectives import ControlLoss, PathLoss
from consistent_samplers.algorithms.on_paths import on_paths, paper_settings
from consistent_samplers.algorithms.pis import PIS
from consistent_samplers.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class DGFS(PIS):
    """Diffusion generative flow sampler: PIS's Brownian motion, trained on parts of its paths.

    Zhang, Chen, Liu, Courville & Bengio, "Diffusion generative flow samplers: improving learning
    signals through partial trajectory optimization", ICLR 2024, arXiv:2310.02679. A flow F_n(x) is
    learned beside the control, the unnormalised marginal of the paths at step n, and every piece
    x_m, ..., x_n of a path is to be in balance,

        L = Σ_{m<n} λ^{n-m} (log F_n(x_n) + Σ_{m<=k<n} [log B_k - log F_k] - log F_m(x_m))²
            / Σ_{m<n} λ^{n-m},

    B_k and F_k being the backward and the generative kernel of step k. In the forward-looking
    parametrisation a network learns what the geometric path lacks,

        log F_t(x) = (1 - t) (log Z + log p0(x)) + t log ρ(x) + network(x, t),

    with log F_0 = log Z + log p0 and log F_1 = log ρ. Nothing is back-propagated through the
    simulation. The pieces are those of one stretch of each path, at a random place: the density is
    asked for at its points and nowhere else, and the control is differentiated along it alone.
    The paper's stretch is the whole path, its λ is 2, and its ρ is taken at √t x.

    The flow must be learned at every place where paths pass, and a mode that none of them meets
    stays unseen. While stretches are shorter than paths, the ``elbo`` that training reports trusts
    the learned flow and is no bound; that of draws is one.

    Attributes:
      segment_share: length of the stretch, as a share of the path.
      decay: λ, the weight of a piece that is one step longer.

    Example:
      >>> import consistent_samplers as cs
      >>> target, base = cs.targets.funnel(3), cs.bases.standard_normal(3)
      >>> algorithm = cs.algorithms.dgfs(target, base=base, max_steps=8, hidden=(8,))
      >>> algorithm.objective.loss, algorithm.methods
      ('sub_trajectory_balance', ('path', 'map'))
    """

    loss: ControlLoss = "sub_trajectory_balance"
    segment_share: float = 0.25
    decay: float = 1.0

    name: ClassVar[str] = "dgfs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.segment_share <= 1.0:
            raise ValueError(
                f"segment_share must be above 0 and at most 1, got {self.segment_share}."
            )
        if self.decay <= 0.0:
            raise ValueError(f"decay must be positive, got {self.decay}.")

    def path_loss(self) -> PathLoss:
        """The control loss."""
        loss = super().path_loss()
        return dataclasses.replace(loss, segment_share=self.segment_share, decay=self.decay)


def _paper(target: Target, overrides: dict[str, Any]) -> dict[str, Any]:
    settings = {"learning_rate": 1e-4, "guidance": "ratio", "segment_share": 1.0, "decay": 2.0}
    return paper_settings(target, train_steps=(overrides.get("max_steps", 128),), **settings)


dgfs = on_paths(DGFS, _paper)
