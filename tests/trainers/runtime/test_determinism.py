import torch

from trainers.runtime.determinism import deterministic_cudnn, epoch_generator, seeded_dropout

CPU = torch.device("cpu")


def draw(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(torch.randint(2**31, (4,), generator=epoch_generator(seed, epoch, CPU)).tolist())


def test_each_seed_and_epoch_has_a_stream_of_its_own():
    streams = [draw(seed, epoch) for seed in (*range(20), 2**62) for epoch in range(20)]
    assert len(set(streams)) == len(streams)
    assert draw(3, 7) == draw(3, 7)


def test_dropout_follows_the_generator_and_the_callers_state_is_given_back():
    state = torch.get_rng_state()
    masks = []
    for seed in (0, 0, 1):
        with seeded_dropout(torch.Generator().manual_seed(seed)):
            masks.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_kernel_settings_are_put_back():
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    with deterministic_cudnn():
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert (cudnn.benchmark, cudnn.deterministic) == before
