import torchvision

from layers import compress_model
from spaces import BlockConfig, Network, NetworkConfig, build_model
from trainers.training.optimizer import make_optimizer
from trainers.training.recipe import TrainingRecipe


def decayed(model) -> set[str]:
    optimizer = make_optimizer(model, TrainingRecipe(weight_decay=0.1))
    found = {w for group in optimizer.param_groups if group["weight_decay"] for w in group["params"]}
    trained = {w for group in optimizer.param_groups for w in group["params"]}
    assert trained == set(model.parameters())
    return {name for name, weight in model.named_parameters() if weight in found}


def test_scales_norms_and_biases_of_a_convnext_are_not_decayed():
    model = torchvision.models.convnext_tiny(num_classes=4)
    left = {name for name, _ in model.named_parameters()} - decayed(model)
    assert {name.rpartition(".")[2] for name in decayed(model)} == {"weight"}
    assert any(name.endswith("layer_scale") for name in left)
    assert all(
        name.endswith(("layer_scale", "bias")) or dict(model.named_parameters())[name].dim() == 1 for name in left
    )


def test_coefficients_are_decayed_and_transforms_are_not():
    model = build_model("resnet8", classes=4, channels=3)
    network = Network.from_module(model, (3, 16, 16))
    blocks = {"layer2": BlockConfig(pruning_rate=0.5), "layer3": BlockConfig(basis="cosine", harmonics=(2, 2))}
    found = decayed(compress_model(model, network.forms(NetworkConfig(blocks=blocks))))
    kinds = {name.rpartition(".")[2] for name in found}
    assert kinds == {"weight", "coefficients"}
