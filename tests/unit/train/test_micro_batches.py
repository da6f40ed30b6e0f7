"""A generation dealt out to the steps that it serves: whole groups, in the order of TRL's shuffle."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import shuffle_sequence_dict

from vrft.train.micro_batches import in_pieces, micro_batches


def generation(n_prompts: int, n_completions: int) -> dict:
    """Rows whose prompt is their group's number; `completion_ids` numbers the rows."""
    prompts = torch.arange(n_prompts).repeat_interleave(n_completions)[:, None]
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": torch.arange(len(prompts))[:, None],
        "advantages": torch.arange(len(prompts)) / 10,
        "num_items_in_batch": torch.tensor(7),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_steps", [1, 2, 4])
def test_groups_stand_whole_in_the_order_of_trls_shuffle(seed, n_steps):
    batch = generation(n_prompts=4, n_completions=3)
    torch.manual_seed(seed)
    theirs = shuffle_sequence_dict(batch)
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    ours = micro_batches(batch, n_steps)
    assert torch.equal(torch.get_rng_state(), after), "the next draws are TRL's too"
    order = list(dict.fromkeys(theirs["prompt_ids"][:, 0].tolist()))
    dealt = torch.cat([step["prompt_ids"] for step in ours])[:, 0].tolist()
    assert dealt == [prompt for prompt in order for _ in range(3)]
    assert [len(step["prompt_ids"]) for step in ours] == [12 // n_steps] * n_steps
    for step in ours:
        assert torch.equal(step["completion_ids"][:, 0] // 3, step["prompt_ids"][:, 0])
        assert torch.equal(step["advantages"], step["completion_ids"][:, 0] / 10)
        assert step["num_items_in_batch"] == 7


def test_a_kept_micro_batch_is_cut_into_smaller_ones_with_its_images():
    """As where a run goes on with half the micro-batch: rows in their order, each with its own patches."""
    batch = generation(n_prompts=2, n_completions=2)
    grids = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 4, 2], [1, 2, 2]])
    patches = torch.arange(4 + 8 + 8 + 4)[:, None].float()
    batch |= {"pixel_values": patches, "image_grid_thw": grids, "num_images": [1, 1, 1, 1]}
    batch = {"row_id": ["a", "b", "c", "d"], **batch}  # from a checkpoint lists come first
    first, second = in_pieces(batch, 2)
    assert second["row_id"] == ["c", "d"]
    assert torch.equal(torch.cat([first["completion_ids"], second["completion_ids"]]), batch["completion_ids"])
    assert (first["num_images"], second["num_images"]) == ([1, 1], [1, 1])
    assert torch.equal(first["pixel_values"], patches[:12])
    assert torch.equal(second["pixel_values"], patches[12:])
    assert torch.equal(second["image_grid_thw"], grids[2:])
    assert second["num_items_in_batch"] == 7
    assert in_pieces(batch, 1)[0].keys() == batch.keys()
