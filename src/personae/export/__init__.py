"""Checkpoints without personae: a model with its masks baked in."""

from personae.export.masked import check_folder, masked_state_dict, save_masked

__all__ = ["check_folder", "masked_state_dict", "save_masked"]
