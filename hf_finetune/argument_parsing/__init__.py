"""Strict reading of settings for `hf_finetune.arguments`: flags, YAML, presets and Python values, all problems at once."""
