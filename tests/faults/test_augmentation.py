"""Whatever images and presets there are: an augmented batch is finite and in [0, 1]."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pose.training.augment import PRESETS, augment_batch, sample_params


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    num_images=st.integers(1, 9),
    size=st.integers(4, 40),
    image_size=st.integers(4, 40),
    levels=st.sampled_from([(0, 1), (0, 256), (255, 256)]),
    seed=st.integers(0, 2**31),
)
def test_augmented_batch_is_in_bounds(judge, preset, num_images, size, image_size, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, 3, size, size)
    images = torch.randint(*levels, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (num_images,), generator=generator)

    def act() -> torch.Tensor:
        params = sample_params(PRESETS[preset], labels, torch.tensor([0, 2, 1]), generator)
        return augment_batch(images, params, image_size)

    def is_right(batch: torch.Tensor) -> bool:
        return (
            batch.shape == (num_images, 3, image_size, image_size)
            and bool(batch.isfinite().all())
            # Levels are multiplied by 1/255 in float32.
            and -1e-6 <= float(batch.min()) <= float(batch.max()) <= 1 + 1e-6
        )

    judge(act, is_right)
