import json
import logging

import pytest
from omegaconf import OmegaConf

from vae_lab.config.secrets import RedactSecrets, redact, refuse_secrets, refuse_written_secrets

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
        ("hub={user: me, token: hello}", "hub"),
        (f"logger.wandb.name=run-{SECRET}-1", "logger.wandb.name"),
        ("dataset.root=https://me:hunter2@example.org/x", "dataset.root"),
        ("dataset.root=https://example.org/x?a=1&api_key=hello", "dataset.root"),
        ("hub.apiKey=hello", "hub.apiKey"),
        ("hub.github_pat=hello", "hub.github_pat"),
        ("hub.password=12345", "hub.password"),
        ("hub=[{'token': hello}]", "hub"),
        ("hub={a: ${oc.env:A}, token: hello, b: ${oc.env:B}}", "hub"),
        (SECRET, "argument 2"),
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
        *("-m", "model=mlp,conv", "model.num_tokens=8", "dataset.root=https://example.org:8080/x@y", "hub.token=null"),
        *("hub.token=${oc.env:HF_TOKEN}", "hub={token: '${oc.env:HF_TOKEN}'}", "dataset.root=ssh://git@example.org/x"),
        *("hub.url=https://${oc.env:USER}:${oc.env:PASSWORD}@host", "dataset.root=https://example.org/x?size=3"),
        "~callbacks.pictures",
    ],
)
def test_ordinary_arguments_pass(argument):
    refuse_secrets([argument])


SECRET_NAMES = """
A_PASSWD A_PASSPHRASE A_CREDENTIAL GITHUB_PAT PROXY_AUTH AUTHORIZATION MYSQL_PWD DB_PASS DB_PASS_2 MY_PASSCODE
SESSION_COOKIE A_JWT PASS AZURE_STORAGE_CONNECTION_STRING
"""
OTHER_NAMES = """
GIT_AUTHOR_NAME TOKENIZERS_PARALLELISM XAUTHORITY PATH_TO_X PWD OLDPWD HOME PROXY_BYPASS COMPASS PASSENGERS PASSIVE_FTP
PWM_MODE SASL_PATH POWER
"""


@pytest.mark.parametrize("name", f"{SECRET_NAMES} {OTHER_NAMES}".split())
def test_names_that_say_secret(name, monkeypatch):
    monkeypatch.setenv(name, "plain-words-1")
    assert redact("a plain-words-1 b") == ("a *** b" if name in SECRET_NAMES.split() else "a plain-words-1 b")


@pytest.mark.parametrize("value", ["quo\"ted\\ba'ck1", "tab\there-12", "ümläut-12", "two\nlines-of-12"])
def test_a_secret_is_found_as_it_is_and_within_quotes(value, monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", value)
    for text in (value, repr(value), json.dumps({"a": value}), str([value])):
        assert "12" not in redact(text), text
        assert "ck1" not in redact(text), text


def test_interpolations_stay_so_that_a_config_still_means_the_same():
    config = {
        "api_key": "${oc.env:MY_API_KEY}",
        "token": "Bearer ${oc.env:MY_API_KEY}",
        "url": "https://${oc.env:USER}:${oc.env:MY_API_KEY}@host/x?token=${oc.env:MY_API_KEY}",
        "passwords": ["${oc.env:A}", "${oc.decode:${oc.env:B}}"],
        "secret": "${oc.env:A,null}",
        "max_token": 512,
        "monitor": "val/loss",
        "keys": ["a", 1, None, True, 0.5],
    }
    assert redact(config) == config
    refuse_written_secrets(config)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"a": {"b": [1, {"c": SECRET}]}}, r"a\.b\.1\.c"),
        ({"a": {"password": 12345}}, r"a\.password"),
        ({"a": {"credentials": {"user": "x"}}}, r"a\.credentials"),
        ({"root": "https://me:hunter2@host"}, "root"),
        ({SECRET: 1}, r"\*\*\*"),
    ],
)
def test_a_config_with_a_secret_written_out_is_refused_by_its_key(config, key):
    with pytest.raises(ValueError, match=f"^{key} looks like a secret") as caught:
        refuse_written_secrets(config)
    assert SECRET not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_container_that_would_be_overlooked_is_refused():
    with pytest.raises(TypeError, match="DictConfig"):
        redact(OmegaConf.create({"a": SECRET}))


def test_a_record_that_cannot_be_formatted_does_not_stop_the_program():
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%d of %d", (SECRET,), None)
    assert RedactSecrets().filter(record)
    assert SECRET not in record.getMessage()


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
