import msgspec

from inference.config import EngineConfig
from inference.model_check import ModelCheck, check_model


def check(folder, **changes) -> ModelCheck:
    config = EngineConfig(model=str(folder), device="cpu", **changes)
    return check_model(config, lambda stage: None)


def test_a_model_that_fits_has_facts_a_plan_and_no_problems(checkpoint_files, write_checkpoint):
    checked = check(write_checkpoint(checkpoint_files), max_pixels=65536)

    assert (checked.problems, checked.notes) == ([], [])
    assert checked.facts is not None
    assert checked.plan is not None
    assert checked.facts.device == checked.plan.device == "cpu"
    assert checked.facts.max_model_len == checked.plan.max_model_len == 4096
    assert checked.summary.startswith("qwen3_vl, ")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(checked), type=ModelCheck) == checked


def test_a_folder_that_is_no_checkpoint_is_a_problem(tmp_path):
    checked = check(tmp_path)

    assert checked == ModelCheck(problems=checked.problems)
    assert "lacks config.json" in checked.problems[0]


def test_a_model_that_does_not_fit_keeps_its_facts(checkpoint_files, write_checkpoint):
    checked = check(write_checkpoint(checkpoint_files), kv_cache_bytes=1)

    assert checked.facts is not None
    assert checked.plan is None
    assert "does not fit" in checked.problems[0]


def test_a_device_that_is_not_there_is_a_problem(checkpoint_files, write_checkpoint):
    config = EngineConfig(model=str(write_checkpoint(checkpoint_files)), device="abacus")

    checked = check_model(config, lambda stage: None)

    assert checked.problems == ["device 'abacus' is unknown; use auto, cpu, cuda or cuda:<number>"]


def test_what_may_surprise_is_noted(checkpoint_files, write_checkpoint):
    folder = write_checkpoint(checkpoint_files)

    longer = check(folder, max_model_len=5000)
    shorter = check(folder, max_model_len=1000, max_pixels=65536)

    assert longer.notes == [
        "--max-model-len is cut to the model's own 4096 tokens",
        "the largest picture takes 4096 of 4096 tokens; --max-pixels makes pictures smaller",
    ]
    assert shorter.notes == ["requests may take 1000 tokens; the model allows 4096"]
