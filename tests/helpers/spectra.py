"""Dense float64 oracles of what the monitoring measures, written from the definitions alone."""

import torch

from mce_llm.lm import TokenGeometry


def unmasked(model, batch):
    """(hidden states, logits, labels) at the unmasked positions, in float64."""
    with torch.no_grad():
        hidden = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])
        hidden = hidden.last_hidden_state[:, :-1]
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    return hidden[kept].double(), logits[kept].double(), labels[kept]


def entropy_rank(eigenvalues):
    share = eigenvalues.clamp_min(0) / eigenvalues.clamp_min(0).sum(dim=-1, keepdim=True)
    return torch.exp(-torch.xlogy(share, share).sum(dim=-1))


def descending(matrices):
    return torch.linalg.eigvalsh(matrices).flip(-1)


def hidden_eigenvalues(hidden):
    return descending(torch.cov(hidden.T, correction=0))


def density_matrices(logits, table, config, token_mask=None):
    """The predicted density matrices: (T, d, d) for `token`, (1, d, d) for the batch kinds."""
    geometry = TokenGeometry.from_table(table.double(), config, token_mask)
    rows, width, epsilon = geometry.all_rows(), table.shape[1], config.epsilon
    q = torch.softmax(logits, dim=-1)
    eye = torch.eye(width, dtype=torch.float64)
    if config.kind == "expected":
        return ((1 - epsilon) * torch.cov((q @ rows).T, correction=0) + epsilon * eye / width).unsqueeze(0)
    if config.kind == "marginal":
        q = q.mean(dim=0, keepdim=True)
    elif config.support is not None and config.support < q.shape[-1]:
        smallest_kept = q.topk(config.support, dim=-1).values[:, -1:]
        q = torch.where(q >= smallest_kept, q, 0)
    q = q * geometry.has_direction_V
    signal = torch.einsum("tv,vd,ve->tde", q, rows, rows)
    background = (1 - epsilon) * (1 - q.sum(dim=-1)) + epsilon
    return (1 - epsilon) * signal + background[:, None, None] * eye / width
