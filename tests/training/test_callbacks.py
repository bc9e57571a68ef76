"""The lines that a person reads while a run goes on."""

import logging
import re

import pytest


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "hf_finetune.training.callbacks"]


def test_one_line_an_evaluation_with_what_selection_needs(make_trainer, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    trainer = make_trainer("vit", eval_strategy="epoch", logging_steps=1)
    trainer.train()
    pattern = (
        r"epoch  {n}\.00/2  step {s}/10  train loss \d\.\d{{4}}  validation loss \d\.\d{{4}}  validation accuracy [01]\.\d{{4}}"
        r"  lr \d\.\d\de-\d\d  \d+ s, \d+ s left"
    )
    lines = lines_of(caplog)
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(pattern.format(n=number, s=5 * number), line), line


def test_without_evaluation_training_is_heard_of_after_a_while_of_silence(make_trainer, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    trainer = make_trainer("vit", logging_steps=5)
    log = next(callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ == "ReadableLog")
    log.quiet_seconds = 0.0
    trainer.train()
    assert [re.match(r"epoch  \d\.00/2  step (\d+)/10  train loss", line)[1] for line in lines_of(caplog)] == ["5", "10"]
