import pytest
import torch
from torch import nn

from trainers.runtime import memory
from trainers.runtime.memory import available_bytes, peak_bytes, saved_bytes, storage_bytes


def test_memory_that_tensors_share_counts_once():
    whole, other = torch.zeros(6, 4), torch.zeros(3, dtype=torch.int64)
    assert storage_bytes([whole[1], whole.T, whole.view(-1), other, other]) == 6 * 4 * 4 + 3 * 8
    assert storage_bytes([]) == 0


def test_what_a_backward_pass_waits_for_is_counted_once_and_without_the_weights():
    x = torch.rand(3, 7, requires_grad=True)
    layer = nn.Sequential(nn.Linear(7, 5), nn.ReLU(inplace=True), nn.Tanh())
    found = saved_bytes(lambda: layer(x), besides=list(layer.parameters()))
    assert found == 4 * (3 * 7 + 3 * 5 + 3 * 5)  # the input, what is rectified in place, its tanh
    assert saved_bytes(lambda: layer(x)) == found + 4 * 5 * 7
    with torch.no_grad():
        assert saved_bytes(lambda: layer(x)) == 0


def test_the_peak_is_of_what_is_alive_at_once():
    held = torch.zeros(1000)

    def work() -> torch.Tensor:
        first = torch.zeros(100)
        second = first * 2
        del first
        held.add_(1.0)
        views = second.view(10, 10).T
        return views.contiguous() + 1.0

    assert peak_bytes(work) == 4 * 300  # the second, its copy, and the sum
    assert peak_bytes(lambda: held.add_(1.0)) == 0


def test_the_peak_of_a_network_grows_with_its_batch():
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        small, large = (peak_bytes(lambda n=n: network(torch.zeros(n, 8))) for n in (10, 30))
    assert (small, large) == (10 * 4 * (8 + 32 + 32), 30 * 4 * (8 + 32 + 32))


def test_available_bytes_follow_the_machine():
    assert 1e6 < available_bytes() < 1e15


@pytest.mark.parametrize(("content", "number"), [("1234\n", 1234), ("max\n", None), (None, None)])
def test_a_limit_file_may_hold_no_limit(tmp_path, content, number):
    path = tmp_path / "memory.max"
    if content is not None:
        path.write_text(content)
    assert memory._read_number(path) == number
