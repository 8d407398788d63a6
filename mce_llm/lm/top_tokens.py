"""The k most probable tokens of each position, found without ranking the whole vocabulary.

Legend: T positions, V vocabulary, K kept tokens, G groups of neighbouring tokens, W tokens of a group,
C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 64
# Below this many groups for each kept token, ranking the groups saves nothing over ranking the tokens.
_GROUPS_PER_TOKEN = 2


def top_tokens(scores_TV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest scores of each row, in descending order, and their tokens.

    A token can only be among the k largest if its group of neighbours is among the k groups with the largest
    maxima, so k groups are ranked instead of V tokens: one pass over the scores, and a ranking of k·W candidates.
    Among equal scores any may be chosen.

    Args:
        scores_TV: (T, V), floating point.
        count: k, from 1 to V.

    Returns:
        Scores (T, K) and token ids (T, K) int64.
    """
    _tokens, size = scores_TV.shape
    groups = size // _GROUP
    if groups < _GROUPS_PER_TOKEN * count:
        values_TK, ids_TK = scores_TV.topk(count, dim=-1)
        return values_TK, ids_TK
    grouped_TGW = scores_TV[:, : groups * _GROUP].unflatten(-1, (groups, _GROUP))
    best_TK = grouped_TGW.amax(dim=-1).topk(count, dim=-1, sorted=False).indices
    candidates_TKW = grouped_TGW.gather(1, best_TK.unsqueeze(-1).expand(-1, -1, _GROUP))
    candidates_TC = candidates_TKW.flatten(1)
    if groups * _GROUP < size:  # tokens beyond the last whole group take part beside the candidates
        candidates_TC = torch.cat([candidates_TC, scores_TV[:, groups * _GROUP :]], dim=-1)
    values_TK, places_TK = candidates_TC.topk(count, dim=-1)
    in_rest_TK = places_TK - count * _GROUP
    group_TK = best_TK.gather(1, (places_TK // _GROUP).clamp_max(count - 1))
    ids_TK = torch.where(in_rest_TK < 0, group_TK * _GROUP + places_TK % _GROUP, groups * _GROUP + in_rest_TK)
    return values_TK, ids_TK
