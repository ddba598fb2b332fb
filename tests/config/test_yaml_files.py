"""YAML files of a user's own: within bounds, each mistake with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.config.groups import config_folder
from flair2_exp.config.yaml_files import ConfigFiles, read
from flair2_exp.errors import ConfigError
from tests.commands import answer

HEAD = "# @package _global_\n"
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGED_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)
)

REFUSED: dict[str, tuple[str | bytes, str]] = {
    "tab": (HEAD + "trainer:\n\tmax_epochs: 3\n", "line 3: a tab: indent with blanks."),
    "key twice": (HEAD + "seed: 1\nseed: 2\n", "line 3: seed is given twice."),
    "inner key twice": (HEAD + "a: {b: 1,\n  b: 2}\n", "line 3: b is given twice."),
    "python tag": (
        HEAD + "name: !!python/object/apply:os.system [touch executed]\n",
        "line 2: the tag !!python/object/apply:os.system is not plain YAML.",
    ),
    "path tag": (
        HEAD + "name: !!python/object/apply:pathlib.PosixPath [a]\n",
        "line 2: the tag !!python/object/apply:pathlib.PosixPath is not plain YAML.",
    ),
    "own tag": (HEAD + "name: !own x\n", "line 2: the tag !own is not plain YAML."),
    "set": (HEAD + "name: !!set {a, b}\n", "line 2: the tag !!set is not plain YAML."),
    "utf-16": ((HEAD + "seed: 1\n").encode("utf-16"), "line 1: it begins with a byte-order mark"),
    "utf-8 with mark": ((HEAD + "seed: 1").encode("utf-8-sig"), "save it as UTF-8 without one."),
    "latin-1": ((HEAD + "name: été").encode("latin-1"), "line 2: this is not UTF-8"),
    "nul": (HEAD + "name: a\0b\n", r"line 2: the control character '\x00' is not allowed."),
    "bell": (HEAD + "name: a\ab\n", r"line 2: the control character '\x07' is not allowed."),
    "alias bomb": (HEAD + BOMB, "with its aliases, more than 10,000 values."),
    "merge bomb": (HEAD + MERGED_BOMB, "with its aliases, more than 10,000 values."),
    "long list": (HEAD + f"a: [{'1,' * 10_000}]", "more than 10,000 values."),
    "large": (HEAD + "x" * 300_000, "more than 256 KB: too large"),
    "endless alias": (HEAD + "name: &a [*a]\n", "line 2: an alias within what it stands for"),
    "unknown alias": (HEAD + "name: *nope\n", "line 2: found undefined alias 'nope'."),
    "deep list": (HEAD + "a: " + "[" * 5000, "line 2: nested more than 50 deep."),
    "deep mapping": (
        HEAD + "\n".join(" " * i + f"k{i}:" for i in range(400)) + " 1",
        "nested more than 50 deep.",
    ),
    "text": (HEAD + "hello\n", "line 2: expected options by name, as `seed: 1`."),
    "list": (HEAD + "- a\n- b\n", "line 2: expected options by name"),
    "number": (HEAD + "3\n", "line 2: expected options by name"),
    "bracket": (HEAD + "data: {bands: [red\n", "line 3: expected ',' or ']', but got"),
    "quote": (HEAD + "name: 'abc\n", "a quoted scalar that begins in line 2."),
    "two documents": (HEAD + "seed: 1\n---\nseed: 2\n", "line 3: a second document begins here"),
    "version": ("%YAML 3.0\n---\nseed: 1\n", "line 1: found incompatible YAML document"),
    "key of a list": (HEAD + "[a, b]: 1\n", "line 2: the key is not a text: write it in quotes."),
    "key null": (HEAD + "null: 1\n", "line 2: the key null is not a text"),
    "key number": (HEAD + "loss:\n  class_weights: {3: 1}\n", "line 3: the key 3 is not a text"),
    "merge of a number": (HEAD + "trainer:\n  <<: 3\n", "line 3: expected a mapping or list of"),
    "digits": (HEAD + f"seed: {'9' * 5000}\n", "line 2: a number of 5000 digits."),
    "interpolation": (HEAD + "name: ${\n", "line 2: ${: expected an interpolation as"),
    "header": ("# @package\nseed: 1\n", "line 1: expected `# @package _global_`."),
    "defaults text": (HEAD + "defaults: foo\n", "line 2: defaults: expected a list, as"),
    "defaults mapping": (HEAD + "defaults: {model: unet}\n", "line 2: defaults: expected a list"),
    "defaults number": (HEAD + "defaults:\n  - 3\n", "line 3: defaults: expected NAME or"),
    "defaults itself": (HEAD + "defaults:\n  - mine\n", "leads back to experiment/mine.yaml."),
    "by its group": (
        HEAD + "defaults: [{/experiment@_global_: [mine]}]\n",
        "leads back to experiment/mine.yaml.",
    ),
    "whole number": (HEAD + "seed: abc\n", "line 2: seed=abc: expected a whole number."),
    "inner number": (
        HEAD + "trainer:\n  max_epochs: many\n",
        "line 3: trainer.max_epochs=many: expected a whole number.",
    ),
    "fraction": (HEAD + "seed: 1.5\n", "line 2: seed=1.5: expected a whole number."),
    "number of a map": (
        HEAD + "loss: {class_weights: {water: lots}}\n",
        "line 2: loss.class_weights.water=lots: expected a number.",
    ),
    "truth": (HEAD + "train: perhaps\n", "line 2: train=perhaps: expected true or false."),
    "node": (
        HEAD + "model: unet\n",
        "line 2: model=unet: expected its options by name; a file of the group is chosen by "
        "`- override /model: NAME` in defaults.",
    ),
    "list wanted": (HEAD + "data: {bands: red}\n", "data.bands=red: expected a list, as [a, b]."),
    "entries wanted": (
        HEAD + "loss: {class_weights: [1, 2]}\n",
        "line 2: loss.class_weights: expected entries by name, as {name: value}.",
    ),
    "text wanted": (HEAD + "name: [a]\n", "line 2: name: expected one value."),
    "null": (HEAD + "data: null\n", "line 2: data=null: expected a value."),
    "misspelt": (HEAD + "sede: 1\n", "line 2: sede: no such option; did you mean seed"),
    "inner misspelt": (
        HEAD + "trainer:\n  <<: {max_epoch: 1}\n",
        "trainer.max_epoch: no such option; did you mean max_epochs?",
    ),
}  # fmt: skip


def _write(folder: Path, content: str | bytes, name: str = "mine") -> Path:
    file = folder / "experiment" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("kind", REFUSED)
def test_a_mistake_in_a_file_is_told_with_its_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = REFUSED[kind]
    file = _write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        ConfigFiles().check("experiment/mine", file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["python tag", "alias bomb", "defaults itself", "deep list"])
@pytest.mark.parametrize(
    "command",
    [
        ["--config-dir", ".", "experiment=mine"],
        ["--config-dir", ".", "experiment=mine", "--cfg", "job"],
        ["experiment=experiment/mine.yaml", "--multirun", "seed=1,2", "sweep.dry_run=true"],
        ["experiment=mine", "hydra.searchpath=[file://HERE]"],
        ["--config-path", "experiment", "--config-name", "mine"],
    ],
    ids=" ".join,
)
def test_hydra_reads_no_file_unchecked(
    kind: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = REFUSED[kind]
    _write(tmp_path, content)
    done = answer(*(each.replace("HERE", str(tmp_path)) for each in command))
    assert done.status == 1
    assert done.err.count("\n") == 1
    if kind != "defaults itself" or "--config-path" not in command:  # where it is no circle
        assert message in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["experiment"]


def test_files_that_lead_back_to_each_other_are_refused(tmp_path: Path) -> None:
    files = ConfigFiles()
    files.check("experiment/a", _write(tmp_path, HEAD + "defaults: [b, _self_]\n", "a"))
    with pytest.raises(ConfigError, match=r"line 3: this defaults list leads back to"):
        files.check("experiment/b", _write(tmp_path, HEAD + "\ndefaults: [/experiment: a]", "b"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + "name: ${nope}", "name: ${nope} is not an option"),
        (HEAD + "name: ${oc.env:NOPE_X}", "name: the environment variable NOPE_X is not set"),
        (HEAD + "name: ${name}", "name: its value refers to itself"),
        (HEAD + "name: ${model.name}\nmodel: {name: '${name}'}", "name: its value refers to itse"),
        (HEAD + "name: ${nores:3}", "name: ${nores:...} is not known"),
        (HEAD + "name: ${oc.decode:'['}", "name: its interpolation has no value: "),
        (HEAD + "defaults: [nothing]", "experiment/mine.yaml: its defaults list names experiment/"),
        (HEAD + "seed: -3", "seed=-3: expected 0 to 4294967295."),
        ("", "experiment/mine.yaml, line 1: expected `# @package _global_`"),
        ("# nothing yet\n", "experiment/mine.yaml, line 1: expected `# @package _global_`"),
        ("seed: 3\n", "experiment/mine.yaml, line 1: expected `# @package _global_`"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("many", [[], ["--multirun", "sweep.dry_run=true"]], ids=["one", "many"])
def test_what_is_known_only_when_a_file_is_composed_is_told_in_a_line(
    content: str, message: str, many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, content)
    done = answer("--config-dir", ".", "experiment=mine", *many)
    assert done.status == 1
    assert message in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["experiment"]


@pytest.mark.parametrize(
    "content",
    [
        HEAD,
        HEAD + "trainer: &base {max_epochs: 3}\n",
        HEAD + "seed: '3'\ntrain: yes\noptimizer: {lr: 1}\nname: 2020-02-01\ncheckpoint: ~\n",
        HEAD + "trainer:\n  <<: {max_epochs: 3}\n  max_epochs: 4\n",
        HEAD + "seed: ${oc.env:SEED,1}\nobjective: [val/miou]\ndata: {bands: [red, green, nir]}\n",
        HEAD + "defaults:\n  - override /model: unet\n  - _self_\n  - optional other: null\n",
        HEAD + "optimizer: {options: {a: [1, {b: '${seed}'}]}}\nhydra: {job: {chdir: true}}\n",
        HEAD.replace("\n", "\r\n") + "seed: 1\r\n",
        "# python -m flair2_exp\n" + HEAD + "seed: 1\n",
    ],
)  # fmt: skip
def test_what_composes_is_taken(content: str, tmp_path: Path) -> None:
    ConfigFiles().check("experiment/mine", _write(tmp_path, content))


def test_every_file_of_ours_would_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flair2_exp.config.yaml_files.config_folder", lambda: tmp_path)
    files, folder = ConfigFiles(), config_folder()
    for path in folder.rglob("*.yaml"):
        files.check(str(path.relative_to(folder).with_suffix("")), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: [a]\ntrain: [b]\n", "line 2: train is given twice."),
        ("train: &a [*a]\n", "line 1: an alias within what it stands for never ends."),
        ("train: [2021-02-30]\n", "day"),
        ("[" * 5000, "nested more than 50 deep."),
    ],
)
def test_other_files_are_read_within_the_same_bounds(
    content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(_write(tmp_path, content))


def test_a_device_or_a_folder_is_not_read(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match=r"this is not a file\."):
            read(path)
