"""What arrives at the Hub, and what stays at home."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from markupsafe import escape

from hf_finetune.reporting import plots
from hf_finetune.reporting.hub import push_run
from hf_finetune.reporting.local_paths import without_local_paths
from hf_finetune.reporting.markdown import markdown_text
from hf_finetune.reporting.report import build_report
from tests.fake_hub import TOKEN, FakeHub
from tests.finished_run import DATASET_PATH, HUB_MODEL, run_metrics, write_finished_run, write_predicted_run

Failure = Callable[..., str]
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)."


def test_one_commit_with_the_checkpoint_at_the_root(server: FakeHub, run: Path) -> None:
    url = push_run(run, "ann/pets", token=TOKEN)

    assert url == f"{server.url}/ann/pets"
    assert len(server.commits) == 1
    assert sorted(server.files["ann/pets"]) == [
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "config.json",
        "config.yaml",
        "metrics.json",
        "model.safetensors",
        "plots/confusion.png",
        "preprocessor_config.json",
        "report.html",
        "report.md",
    ]
    assert server.files["ann/pets"]["model.safetensors"] == (run / "model/model.safetensors").read_bytes()
    assert server.files["ann/pets"]["plots/confusion.png"] == (run / "plots/confusion.png").read_bytes()
    assert server.calls == ["create", "info", "validate-yaml", "preupload", "commit"]
    assert server.authorizations == {f"Bearer {TOKEN}"}
    assert server.private == {"ann/pets": False}


def test_the_card_names_the_repository_only_in_the_pushed_copy(server: FakeHub, run: Path) -> None:
    push_run(run, "ann/pets", token=TOKEN)

    assert server.files["ann/pets"]["README.md"] == b"---\nlicense: mit\n---\n# Card\n\nmodel=ann/pets\n"
    assert "USER/REPOSITORY" in (run / "README.md").read_text()


def test_a_missing_card_is_written_first(server: FakeHub, run: Path) -> None:
    (run / "README.md").unlink()

    push_run(run, "ann/pets", token=TOKEN)

    assert (run / "README.md").read_text().replace("USER/REPOSITORY", "ann/pets") == server.files["ann/pets"]["README.md"].decode()


def test_large_files_go_through_lfs(online: pytest.MonkeyPatch, run: Path) -> None:
    weights = bytes(range(251)) * 40_000  # 10 MB, more than one packet and not all zeros
    (run / "model" / "model.safetensors").write_bytes(weights)
    with FakeHub(lfs=True) as server:
        online.setenv("HF_ENDPOINT", server.url)
        push_run(run, "ann/pets", token=TOKEN)

    assert server.files["ann/pets"]["model.safetensors"] == weights
    assert server.calls.count("lfs-batch") == 1
    assert server.calls.count("lfs-put") == 3
    assert len(server.commits) == 1


def test_a_name_alone_goes_to_the_namespace_of_the_user(server: FakeHub, run: Path) -> None:
    assert push_run(run, "pets", token=TOKEN) == f"{server.url}/ann/pets"
    assert b"model=ann/pets" in server.files["ann/pets"]["README.md"]


def test_an_existing_repository_is_used_and_only_old_run_files_are_removed(server: FakeHub, run: Path) -> None:
    old = ["adapter/old.safetensors", "plots/old.png", "model-00001-of-00002.safetensors", "mine.txt", "docs/a.md", ".gitattributes"]
    server.add_repository("ann/pets", files=dict.fromkeys(old, b"old"))

    push_run(run, "ann/pets", token=TOKEN)

    kept = server.files["ann/pets"].keys() & set(old)
    assert kept == {"mine.txt", "docs/a.md", ".gitattributes"}


def test_a_private_repository(server: FakeHub, run: Path) -> None:
    push_run(run, "ann/pets", private=True, token=TOKEN)
    assert server.private == {"ann/pets": True}


def test_private_is_not_ignored_when_the_repository_is_public_already(server: FakeHub, run: Path, failure: Failure) -> None:
    server.add_repository("ann/pets", private=False)

    text = failure(run, private=True)

    assert text == (
        "The push to 'ann/pets' failed. 'ann/pets' exists and is public, but --hub_private_repo was given. Nothing was sent; name "
        f"another repository.\nThe run is complete in {str(run)!r}; to push it again:\n"
        f"  python recipes/push.py {run} --hub_model_id ann/pets --hub_private_repo"
    )
    assert server.commits == []


@pytest.mark.parametrize("source", ["HF_TOKEN", "file"])
def test_the_token_of_the_machine_is_used(server: FakeHub, run: Path, online: pytest.MonkeyPatch, tmp_path: Path, source: str) -> None:
    if source == "HF_TOKEN":
        online.setenv("HF_TOKEN", f" {TOKEN}\n")
    else:
        (tmp_path / "no-token").write_text(TOKEN)

    push_run(run, "ann/pets")

    assert server.authorizations == {f"Bearer {TOKEN}"}


def test_no_local_path_is_published(server: FakeHub, tmp_path: Path, online: pytest.MonkeyPatch) -> None:
    online.setenv("HOME", "/home/ann")
    model = {"name": "/home/ann/models/vit", "base_model": None, "license": None, "adapter": {"type": "lora"}}
    dataset = run_metrics()["dataset"] | {"name": DATASET_PATH}
    notices = ["Left out 1 of 20 images: /home/ann/elsewhere/1.jpg.", "Read from C:\\Users\\ann\\pets, or https://example.org/home/ann/x."]
    metrics = run_metrics(model=model, dataset=dataset, notices=notices)
    settings = {
        "dataset": DATASET_PATH,
        "model": "/home/ann/models/vit",
        "run_name": "runs/demo",
        "hub_token": TOKEN,
        "lora_targets": r".*\.q",
    }
    run = write_finished_run(tmp_path / "demo", adapter=True, metrics=metrics, **settings)

    push_run(run, "ann/pets", token=TOKEN)

    sent = server.files["ann/pets"]
    everything = b"\n".join(content for path, content in sent.items()).replace(b"https://example.org/home/ann/x", b"")
    for private in (b"/home/ann", b"private place", b"secret", b"elsewhere", b"Users", TOKEN.encode()):
        assert private not in everything
    config = yaml.safe_load(sent["config.yaml"])
    assert {key: config[key] for key in settings if key in config} == {
        "dataset": "my pets",
        "model": "vit",
        "run_name": "demo",
        "lora_targets": r".*\.q",
    }
    assert config["output_dir"] == "demo"
    assert json.loads(sent["metrics.json"])["notices"] == [
        "Left out 1 of 20 images: 1.jpg.",
        "Read from pets, or https://example.org/home/ann/x.",
    ]
    assert json.loads(sent["adapter/adapter_config.json"]) == {"peft_type": "LORA", "base_model_name_or_path": None}
    assert json.loads(sent["config.json"])["_name_or_path"] == "vit"
    assert sent["report.html"] == b"<p title='my pets'>photos</p><script>/a+/g</script>"
    # what is on disk keeps its paths, so that the run can be repeated here
    assert DATASET_PATH in (run / "config.yaml").read_text()


HOSTILE_PATH = '/home/o\'brien_x/my "runs"/~a'


@pytest.mark.parametrize("path", [HOSTILE_PATH, "/home/o'brien/a & b/two  blanks/pets_", "/home/o'brien/<ü|*>/$x$", "~/o'brien/pets"])
def test_no_spelling_of_a_path_is_published(
    server: FakeHub, tmp_path: Path, online: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """With the report and the card that the toolkit itself writes."""
    monkeypatch.setattr(plots, "png", lambda figure: b"PNG")
    run = write_finished_run(tmp_path / "demo", adapter=True, dataset=path, output_dir=f"{path}/out")
    write_predicted_run(
        run,
        ["a", "b"],
        images=20,
        dataset=run_metrics()["dataset"] | {"name": path, "label_names": ["a", "b"]},
        notices=[f"Left out 1 of 20 images: {path}/1.jpg."],
    )
    (run / "config.yaml").write_text(yaml.safe_dump({"dataset": path, "output_dir": f"{path}/out", "seed": 1}))
    build_report(run)

    push_run(run, "ann/pets", token=TOKEN)

    for name in ("README.md", "report.md", "report.html", "metrics.json", "config.yaml"):
        assert b"brien" not in server.files["ann/pets"][name], name
    name = path.rpartition("/")[2]
    sent = {name: content.decode() for name, content in server.files["ann/pets"].items() if name.endswith((".md", ".html", ".json"))}
    assert json.loads(sent["metrics.json"])["notices"] == [f"Left out 1 of 20 images: {name}/1.jpg."]
    assert f"- Left out 1 of 20 images: {markdown_text(name)}/1.jpg." in sent["report.md"]
    assert f"- Left out 1 of 20 images: {markdown_text(name)}/1.jpg." in sent["README.md"]
    assert f"<li>Left out 1 of 20 images: {escape(name)}/1.jpg.</li>" in sent["report.html"]


def test_this_home_folder_is_cut_too(online: pytest.MonkeyPatch) -> None:
    online.setenv("HOME", "/home/o'brien")
    assert without_local_paths("at /home/o'brien/x and /home/o&#39;brien/y") == "at ~/x and ~/y"
    assert without_local_paths("at /home/o'brien_2/x") == "at /home/o'brien_2/x"


def test_an_adapter_names_its_base_model_where_that_is_on_the_hub(server: FakeHub, tmp_path: Path) -> None:
    push_run(write_finished_run(tmp_path / "demo", adapter=True, metrics=run_metrics(model=HUB_MODEL)), "ann/pets", token=TOKEN)
    assert json.loads(server.files["ann/pets"]["adapter/adapter_config.json"])["base_model_name_or_path"] == HUB_MODEL["name"]


def test_a_file_with_the_token_in_it_is_not_sent(server: FakeHub, run: Path, failure: Failure) -> None:
    (run / "report.md").write_text(f"curl -H 'authorization: Bearer {TOKEN}'")

    text = failure(run)

    assert text.startswith(
        "The push to 'ann/pets' failed. report.md holds your token for the Hub. Nothing was sent; take it out of the file"
    )
    assert server.calls == []
