import pytest

from vae_lab.runs.folder import folder_name


@pytest.mark.parametrize("name", ["beta4", "2026", "größe", "a b", "lr=1e-3,beta=4", "v1.2_final+x@y", "実験", 7])
def test_ordinary_names_are_kept(name):
    assert folder_name(name, "mnist_mlp") == str(name)


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/x",
        "a/b",
        "..",
        ".",
        ".hidden",
        "-rf",
        "a\0b",
        "a\nb",
        "",
        " a",
        "x" * 300,
        "ü" * 60,
        "a\\b",
        "$x",
        "~",
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="run_name must begin with a letter or digit") as caught:
        folder_name(name, "mnist_mlp")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("options", "name"),
    [("mnist_mlp", "mnist_mlp"), ("mine/stripes_mlp", "mine-stripes_mlp"), ("../x_../../y", "x_..-..-y")],
)
def test_without_a_name_the_options_stand_there_in_one_piece(options, name):
    assert folder_name(None, options) == name
    assert "/" not in name
