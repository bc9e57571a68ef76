"""LoRA fine-tuning of a pretrained vision transformer: photos in; a measured, reported, reloadable checkpoint out.

    accelerate launch recipes/vit_lora.py --preset demo                        # embedded data and checkpoint, no network
    accelerate launch recipes/vit_lora.py                                      # ViT-B/16 on Oxford-IIIT Pet, from the Hub
    accelerate launch recipes/vit_lora.py --dataset flowers102 --push_to_hub --hub_model_id you/vit-flowers
    accelerate launch recipes/vit_lora.py --dataset path/to/photos --model facebook/dinov2-small

The question: how far does a frozen transformer come with a few thousand trained weights beside each attention projection (Hu et al. 2021,
arXiv:2106.09685)? `--adapter none` fine-tunes everything, `--adapter none --freeze head` trains the head alone, for comparison.
"""

from hf_finetune.launch import run_recipe


def main() -> None:
    """Parse, fine-tune, and say what came out and where it lies."""
    from hf_finetune.arguments import parse_arguments

    arguments = parse_arguments(recipe="vit_lora", defaults={"adapter": "lora"}, description=__doc__)
    from hf_finetune.run import run_once  # after the arguments, so that --help and a misspelt flag answer quickly

    outcome = run_once(arguments)
    if arguments.training.should_save:
        print(outcome)


if __name__ == "__main__":
    run_recipe(main)
