"""Memory is used again only when nobody can see it any more."""

from storydist.data.memory import FrameMemory


def test_freed_memory_is_used_again():
    memory = FrameMemory(2)
    first = memory.take(4, 10, 10, 3)
    place = first.data_ptr()
    del first
    assert memory.take(3, 10, 10, 3).data_ptr() == place


def test_whatever_still_refers_to_a_block_keeps_it():
    memory = FrameMemory(2)
    tensor = memory.take(2, 5)
    tensor.fill_(7)
    held = {"slice": tensor[1:], "array": tensor.numpy()[0], "view": tensor.numpy().data}
    del tensor
    for name in list(held):
        other = memory.take(2, 5)
        other.fill_(9)
        kept = held.pop(name)
        assert set(bytes(kept.numpy() if name == "slice" else kept)) == {7}, name
        del other, kept
    assert len(memory._blocks) <= 2


def test_more_blocks_than_are_kept_do_no_harm():
    memory = FrameMemory(2)
    tensors = [memory.take(3, 3).fill_(i) for i in range(6)]
    assert [tensor.unique().tolist() for tensor in tensors] == [[i] for i in range(6)]
    assert len(memory._blocks) == 2
