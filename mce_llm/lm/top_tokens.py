"""The k most probable tokens of each position, found without ranking the whole vocabulary.

Legend: T positions, V vocabulary, K kept tokens, G groups of neighbouring tokens, W tokens of a group,
C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
# Below this many groups for each kept token, ranking the groups saves nothing over ranking the tokens.
_GROUPS_PER_TOKEN = 2


def top_tokens(scores_TV: Tensor, count: int, maxima_TG: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `count` largest scores of each row, in descending order, and their tokens.

    A token can only be among the k largest if its group of neighbours is among the k groups with the largest
    maxima, so k groups are ranked instead of V tokens: one pass over the scores, and a ranking of k·W candidates.
    Among equal scores any may be chosen.

    Args:
        scores_TV: (T, V), floating point.
        count: k, from 1 to V.
        maxima_TG: (T, G), the largest score of each whole group of `GROUP` neighbours, where they are known already;
            tokens beyond the last whole group are not in it.

    Returns:
        Scores (T, K) and token ids (T, K) int64.
    """
    values_TK, places_TK, best_TK = top_candidates(scores_TV, count, maxima_TG)
    if best_TK is None:
        return values_TK, places_TK
    groups = scores_TV.shape[1] // GROUP
    in_rest_TK = places_TK - count * GROUP
    group_TK = best_TK.gather(1, (places_TK // GROUP).clamp_max(count - 1))
    ids_TK = torch.where(in_rest_TK < 0, group_TK * GROUP + places_TK % GROUP, groups * GROUP + in_rest_TK)
    return values_TK, ids_TK


def top_candidates(
    scores_TV: Tensor, count: int, maxima_TG: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same with places among candidates in the stead of tokens, for whoever finds these on the way.

    Args:
        scores_TV: As for `top_tokens`.
        count: k.
        maxima_TG: As for `top_tokens`.

    Returns:
        Scores (T, K); their places (T, K) int64; and the groups of the candidates, (T, K) int64: first come the `GROUP`
        tokens of each of these, then the tokens beyond the last whole group. None in place of the groups where places
        are tokens.
    """
    _tokens, size = scores_TV.shape
    groups = size // GROUP
    if groups < _GROUPS_PER_TOKEN * count:
        values_TK, ids_TK = scores_TV.topk(count, dim=-1)
        return values_TK, ids_TK, None
    grouped_TGW = scores_TV[:, : groups * GROUP].unflatten(-1, (groups, GROUP))
    if maxima_TG is None:
        maxima_TG = grouped_TGW.amax(dim=-1)
    best_TK = maxima_TG.topk(count, dim=-1, sorted=False).indices
    candidates_TKW = grouped_TGW.gather(1, best_TK.unsqueeze(-1).expand(-1, -1, GROUP))
    candidates_TC = candidates_TKW.flatten(1)
    if groups * GROUP < size:  # tokens beyond the last whole group take part beside the candidates
        candidates_TC = torch.cat([candidates_TC, scores_TV[:, groups * GROUP :]], dim=-1)
    values_TK, places_TK = candidates_TC.topk(count, dim=-1)
    return values_TK, places_TK, best_TK
