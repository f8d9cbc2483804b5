"""Recipes as options ask for them."""

from search.commands.option_groups import BaselineRecipeOptions, RecipeOptions


def test_a_network_learns_from_outputs_only_where_there_is_a_network_to_learn_from() -> None:
    assert RecipeOptions().training_recipe().distillation == 0.5
    assert RecipeOptions(distillation=0.0).training_recipe().distillation == 0.0
    assert RecipeOptions(recipe="approxconv").training_recipe().distillation == 0.0
    assert BaselineRecipeOptions(recipe="finetune", epochs=1).training_recipe().distillation == 0.0
