"""Which visual tokens stay: one function a policy, all in `POLICIES`.

A policy fills each frame's budget with patches kept as they are and, where it wants, with coarse tokens that are
weighted means of the frame's patches. It works on the whole batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from salcap.seeding import noise
from salcap.weighting.apportion import apportion, bounded_shares
from salcap.weighting.pooling import Grid, overlap_matrix

COVERAGE = 0.5  # `stratified`: least chance of a patch, as a share of an even draw's
_GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True, eq=False)
class Request:
    """What a policy is asked for.

    Attributes:
        saliency: (B, F, N) float32, finite, >= 0.
        budgets: (B, F) int64, tokens for each frame, 1 to N.
        total: tokens of a clip, the sum of its budgets, the same for every clip; below F * N.
        grid: (gh, gw).
        seeds: (B, F) int64, one for each frame.
    """

    saliency: Tensor
    budgets: Tensor
    total: int
    grid: Grid
    seeds: Tensor

    @property
    def num_tokens(self) -> int:
        """Mean tokens per frame, rounded down."""
        return self.total // self.budgets.shape[1]


@dataclass(frozen=True, eq=False)
class Choice:
    """What a policy answers.

    Attributes:
        keep: (B, F, N) bool, patches that stay as they are; as many in every clip.
        merge: (B, F, M, N) float32 or None: weights of each coarse token over its frame's patches, rows sum to 1; a
            frame with fewer than M coarse tokens ends with rows of zeros.
    """

    keep: Tensor
    merge: Tensor | None = None


@dataclass(frozen=True)
class Policy:
    """A function that chooses patches.

    Attributes:
        choose: answers a request.
        reads_map: False of a control, whose budget is the same for all frames.
    """

    choose: Callable[[Request], Choice]
    reads_map: bool = True


def top(request: Request) -> Choice:
    """The most salient patches; equals are taken from all over the frame."""
    return Choice(_most_salient(request, request.budgets))


def random(request: Request) -> Choice:
    """Control: any patch with the same chance, drawn anew for each frame."""
    return Choice(_highest(noise(request.seeds, request.saliency.shape[-1]), request.budgets))


def stratified(request: Request) -> Choice:
    """Patches drawn with a chance proportional to saliency, evenly along a path through the frame.

    Systematic sampling: chances are laid end to end along the path and a comb of step 1 picks from them. So each
    patch's frequency is its chance, and since no chance is below ``COVERAGE`` of an even draw's, no stretch of
    N / (COVERAGE * budget) patches of the path is left out. The comb is shifted by the golden ratio from frame to
    frame, so that a still scene shows different patches.
    """
    saliency, budgets = request.saliency, request.budgets[..., None]
    num_patches = saliency.shape[-1]
    path, _ = patch_path(request.grid, request.num_tokens, saliency.device)
    chance = bounded_shares(saliency[..., path], budgets, COVERAGE * budgets / num_patches, 1.0)
    frame = torch.arange(budgets.shape[1], device=saliency.device)[:, None]
    shift = (noise(request.seeds[:, :1], 1) / 2.0**32 + _GOLDEN_RATIO * frame) % 1.0
    tooth = torch.arange(int(budgets.max()), device=saliency.device)
    picks = torch.searchsorted(chance.cumsum(-1), (tooth + 1.0 - shift.double()).expand(*budgets.shape[:2], -1))
    # Rounding could pick a patch twice or none at the end: picks must climb and leave room for those after them.
    picks = torch.minimum((picks - tooth).cummax(-1).values + tooth, num_patches - budgets + tooth)
    patch = path[picks.clamp_max(num_patches - 1)].where(tooth < budgets, num_patches)  # past the budget: cut off below
    keep = torch.zeros(*budgets.shape[:2], num_patches + 1, dtype=torch.bool, device=saliency.device)
    return Choice(keep.scatter_(-1, patch, True)[..., :-1])


def foveate(request: Request) -> Choice:
    """As the eye does: half of the budget goes to the most salient patches, the rest into coarse tokens.

    The patches that are not kept are cut, along a path through the frame, into as many stretches of equal length as
    the budget has tokens left; each becomes the mean of its patches. So every patch is in exactly one token, and a
    coarse token stands for a compact area.
    """
    budgets, num_frames = request.budgets, request.saliency.shape[1]
    if bool((budgets == request.num_tokens).all()):
        num_coarse = budgets - budgets // 2
    else:  # every clip must keep as many patches as the others, and every frame one coarse token at least
        total = num_frames * (request.num_tokens - request.num_tokens // 2) + request.total % num_frames // 2
        num_coarse = apportion(budgets, total, 1, budgets)
    keep = _most_salient(request, budgets - num_coarse)
    path, place = patch_path(request.grid, request.num_tokens - request.num_tokens // 2, keep.device)
    rest = ~keep[..., path]
    stretch = (rest.cumsum(-1) - 1) * num_coarse[..., None] // rest.sum(-1, keepdim=True)
    stretch = stretch.where(rest, -1)[..., place]
    coarse = torch.arange(int(num_coarse.max()), device=keep.device)
    merge = (stretch[..., None, :] == coarse[:, None]).float()
    return Choice(keep, merge / merge.sum(-1, keepdim=True).clamp_min(1.0))


def pool(request: Request) -> Choice:
    """Control: average pooling of the whole frame.

    To the largest well-shaped grid that is not above the budget: cells up to twice as long as wide cost nothing,
    longer ones count against the number of cells. So the tokens may be fewer than asked, never more.
    """
    batch, num_frames = request.saliency.shape[:2]
    merge = _pooling(request.grid, _pool_grid(request.grid, request.num_tokens), request.saliency.device)
    keep = torch.zeros_like(request.saliency, dtype=torch.bool)
    return Choice(keep, merge.expand(batch, num_frames, -1, -1))


POLICIES: dict[str, Policy] = {
    "top": Policy(top),
    "stratified": Policy(stratified),
    "foveate": Policy(foveate),
    "random": Policy(random, reads_map=False),
    "pool": Policy(pool, reads_map=False),
}


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def patch_path(grid: Grid, num_stretches: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A path through all patches of which equal stretches are compact areas.

    The grid is cut into bands as high as the side of a square of N / num_stretches patches; the path winds through
    each band column by column, there and back, so that neighbours on it are neighbours in the frame.

    Returns:
        path: (N,) int64, the patch (raster index) at each place; place: (N,) int64, the place of each patch.
    """
    gh, gw = grid
    num_bands = min(max(round(gh / (gh * gw / num_stretches) ** 0.5), 1), gh)
    path = []
    for band in range(num_bands):
        rows = range(band * gh // num_bands, (band + 1) * gh // num_bands)
        columns = range(gw) if band % 2 == 0 else range(gw - 1, -1, -1)
        for turn, column in enumerate(columns):
            path += [row * gw + column for row in (rows if turn % 2 == 0 else reversed(rows))]
    forward = torch.tensor(path, device=device)
    return forward, forward.argsort()


def _most_salient(request: Request, counts: Tensor) -> Tensor:
    order, place = _spread_order(request.grid, request.num_tokens, request.saliency.device)
    return _highest(request.saliency[..., order], counts)[..., place]


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _spread_order(grid: Grid, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All patches in an order of which each beginning is spread evenly over the frame, and each one's place in it.

    That of `patch_path`'s places with their bits reversed (van der Corput). Both (N,) int64.
    """
    _, place = patch_path(grid, num_tokens, device)
    num_bits = max(len(place) - 1, 1).bit_length()
    bits = [(place >> bit & 1) << (num_bits - 1 - bit) for bit in range(num_bits)]
    order = torch.stack(bits).sum(0).argsort()
    return order, order.argsort()


def _highest(values: Tensor, counts: Tensor) -> Tensor:
    """Mask of each frame's ``counts`` highest values, the first of equals."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    among = torch.arange(values.shape[-1], device=values.device) < counts[..., None]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, order, among)


@lru_cache(maxsize=256)
def _pool_grid(grid: Grid, num_tokens: int) -> Grid:
    gh, gw = grid

    def worth(cells: Grid) -> tuple[float, float]:
        ratio = (gh * cells[1]) / (gw * cells[0])
        ratio = max(ratio, 1 / ratio)
        return cells[0] * cells[1] / max(ratio / 2, 1.0), -ratio

    shapes = [(rows, min(gw, num_tokens // rows)) for rows in range(1, min(gh, num_tokens) + 1)]
    shapes += [(min(gh, num_tokens // columns), columns) for columns in range(1, min(gw, num_tokens) + 1)]
    return max(shapes, key=worth)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _pooling(grid: Grid, cells: Grid, device: torch.device) -> Tensor:
    """(cells, N) weights of exact area pooling from one grid to another."""
    rows = overlap_matrix(grid[0], cells[0], 0.0, 1.0, device)
    columns = overlap_matrix(grid[1], cells[1], 0.0, 1.0, device)
    weights = torch.kron(rows, columns)
    return weights / weights.sum(-1, keepdim=True)
