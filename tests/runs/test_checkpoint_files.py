"""A checkpoint file comes back as it was, or is refused with its name."""

import os

import pytest
import torch

from vae_lab.errors import RunError
from vae_lab.runs.checkpoints import DamagedError, DurableCheckpointIO, load_checkpoint, newest_checkpoint


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = {"a": torch.randn(3), "b": [1, 2.5, None, "c"], "d": {"e": (True, torch.tensor(4))}}
    path = tmp_path / "checkpoints" / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(saved, path)
    loaded = DurableCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["a"], saved["a"])
    assert loaded["b"] == saved["b"]
    assert loaded["d"] == saved["d"]
    DurableCheckpointIO().remove_checkpoint(path)
    assert os.listdir(path.parent) == []


def test_a_save_that_torch_cannot_finish_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"step": 1}, path)

    def fail(checkpoint, file):
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos\nframe #0: ...")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RunError, match=rf"cannot write {path}: .*disk full") as caught:
        DurableCheckpointIO().save_checkpoint({"step": 2}, path)
    assert len(str(caught.value).splitlines()) == 1
    assert load_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


DAMAGE = {
    "empty": lambda content: b"",
    "a tenth": lambda content: content[: len(content) // 10],
    "half": lambda content: content[: len(content) // 2],
    "short of 50 bytes": lambda content: content[:-50],
    "zeros at the end": lambda content: content[:-4096] + bytes(4096),
    "text": lambda content: b"<html>not found</html>",
    "noise": lambda content: os.urandom(1000),
}


@pytest.mark.fault
@pytest.mark.parametrize("damage", DAMAGE)
def test_c8_a_damaged_checkpoint_is_named(damage, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"weight": torch.randn(3000)}, path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DamagedError, match=rf"{path} is damaged: .") as caught:
        load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_checkpoint_is_named(tmp_path):
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(RunError, match=rf"no checkpoint at {path}"):
            load_checkpoint(path)


def save(path, **content) -> bytes:
    DurableCheckpointIO().save_checkpoint({"state_dict": {"w": torch.randn(500)}, **content}, path)
    return path.read_bytes()


@pytest.mark.fault
def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "last.ckpt"
    whole = save(path, global_step=3)
    weights = load_checkpoint(path)["state_dict"]["w"]
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(len(whole), (300,), generator=generator).tolist()
    messages = []
    for position in [*positions, len(whole) // 2]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            loaded = load_checkpoint(path)
        except RunError as error:
            messages.append(str(error))
        else:  # a bit of the archive's padding or of a field that nothing reads
            assert loaded["global_step"] == 3
            assert torch.equal(loaded["state_dict"]["w"], weights)
    assert len(messages) > len(positions) / 2  # the weights alone are more than half of the file
    assert any(f"{path} is damaged: the checksum of " in message for message in messages)
    assert all(str(path) in message and len(message.splitlines()) == 1 for message in messages)


def test_the_newest_checkpoint_that_is_not_damaged_is_chosen(tmp_path, caplog):
    for step, name in ((1, "best"), (2, "previous"), (3, "last")):
        save(tmp_path / f"{name}.ckpt", global_step=step)
    assert newest_checkpoint(tmp_path).name == "last.ckpt"
    assert not caplog.records
    for name, chosen, step in (("last", "previous", 2), ("previous", "best", 1)):
        damaged = tmp_path / f"{name}.ckpt"
        damaged.write_bytes(damaged.read_bytes()[:-50])
        caplog.clear()
        assert newest_checkpoint(tmp_path).name == f"{chosen}.ckpt"
        assert f"{damaged} is damaged" in caplog.text
        assert f"using {chosen}.ckpt of step {step}" in caplog.text
    (tmp_path / "best.ckpt").write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint can be read: .*last.*previous.*best") as caught:
        newest_checkpoint(tmp_path)
    assert not isinstance(caught.value, DamagedError)


def test_there_may_be_no_checkpoint_yet(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None
