import logging

import pytest

from vae_lab.secrets import RedactSecrets, redact, refuse_secrets

SECRET = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "true")


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("logger.wandb.api_key=hello", "logger.wandb.api_key"),
        ("+hub.HF_TOKEN=hello", "hub.HF_TOKEN"),
        ("++db.password=hello", "db.password"),
        ("a.client_secret=1,2", "a.client_secret"),
        ("hub={user: me, token: hello}", "hub"),
        (f"logger.wandb.name=run-{SECRET}-1", "logger.wandb.name"),
        ("dataset.root=https://me:hunter2@example.org/x", "dataset.root"),
        (SECRET, "argument 2"),
        (f"{SECRET}=1", "argument 2"),
    ],
)
def test_a_secret_is_refused_by_its_key_and_not_shown(argument, name):
    with pytest.raises(ValueError, match="looks like a secret") as caught:
        refuse_secrets(["seed=1", argument])
    message = str(caught.value)
    assert message.startswith(name + " ")
    assert "environment" in message
    assert SECRET not in message
    assert "hello" not in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "argument",
    [
        "--help",
        "-m",
        "model=mlp,conv",
        "model.num_tokens=8",
        "model.tokenizer=words",
        "dataset.root=https://example.org:8080/x@y",
        "hub.token=null",
        "hub.token=",
        "hub.token=${oc.env:HF_TOKEN}",
        "trainer.benchmark=true",
        "~callbacks.pictures",
    ],
)
def test_ordinary_arguments_pass(argument):
    refuse_secrets([argument])


def test_a_path_is_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("KEY_DIR", str(tmp_path))
    refuse_secrets([f"dataset.root={tmp_path}/images"])


def test_redact_replaces_values_everywhere_and_leaves_the_original_alone():
    config = {
        "a": [SECRET, f"x{SECRET}y", 1.5, None, True],
        "b": {"url": "postgres://me:hunter2@host/db", "api_key": "abc", "token": None, "tokens": "abc"},
        "c": ("true", "https://example.org"),
    }
    assert redact(config) == {
        "a": ["***", "x***y", 1.5, None, True],
        "b": {"url": "postgres://***@host/db", "api_key": "***", "token": None, "tokens": "abc"},
        "c": ["true", "https://example.org"],
    }
    assert config["a"][0] == SECRET


def test_a_secret_that_contains_another_is_replaced_whole(monkeypatch):
    monkeypatch.setenv("OTHER_TOKEN", SECRET + "-longer")
    assert redact(SECRET + "-longer") == "***"


def test_log_records_are_redacted(tmp_path):
    handler = logging.FileHandler(tmp_path / "log")
    handler.addFilter(RedactSecrets())
    log = logging.getLogger("test_secrets")
    log.addHandler(handler)
    try:
        log.warning("key %s at %s", SECRET, "http://me:hunter2@host")
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.exception("failed")
    finally:
        log.removeHandler(handler)
        handler.close()
    text = (tmp_path / "log").read_text()
    assert SECRET not in text
    assert "hunter2" not in text
    assert "key *** at http://***@host" in text
    assert "ValueError: ***" in text
    assert "Traceback" in text
