"""The networks of the table: name -> family. Torchvision's are all it has, timm's are chosen."""

from torch import nn
from torchvision import models

# Families of timm with batch norm, and one to three networks of each, small ones.
TIMM = {
    "resnet": "resnet10t resnet18 resnet26d",
    "resnext": "resnext50_32x4d resnext26ts",
    "seresnet": "seresnet18 seresnext26d_32x4d",
    "legacy_senet": "legacy_seresnet18",
    "ecaresnet": "ecaresnet26t",
    "skresnet": "skresnet18",
    "resnest": "resnest14d",
    "resnetv2": "resnetv2_18 resnetv2_50",
    "resnetaa": "resnetaa34d seresnetaa50d",
    "res2net": "res2net50_26w_4s res2next50",
    "wide_resnet": "wide_resnet50_2",
    "gernet": "gernet_s",
    "tresnet": "tresnet_m",
    "vovnet": "vovnet39a",
    "ese_vovnet": "ese_vovnet19b_slim ese_vovnet19b_dw",
    "dla": "dla34 dla46_c dla60_res2net",
    "hrnet": "hrnet_w18_small",
    "cspnet": "cspresnet50 cspdarknet53 cspresnext50",
    "cs3": "cs3darknet_s cs3darknet_focus_s cs3sedarknet_l",
    "darknet": "darknet17 darknetaa53",
    "densenet": "densenet121 densenetblur121d",
    "dpn": "dpn48b dpn68",
    "ghostnet": "ghostnet_050 ghostnetv2_100",
    "repghostnet": "repghostnet_050",
    "hardcorenas": "hardcorenas_a",
    "inception": "inception_v3 inception_v4 inception_resnet_v2",
    "mixnet": "mixnet_s",
    "mnasnet": "mnasnet_small semnasnet_050",
    "mobilenetv1": "mobilenetv1_100",
    "mobilenetv2": "mobilenetv2_035 mobilenetv2_110d",
    "mobilenetv3": "mobilenetv3_small_050 mobilenetv3_large_075",
    "mobilenetv4": "mobilenetv4_conv_small_035 mobilenetv4_conv_blur_medium",
    "mobilenet_edgetpu": "mobilenet_edgetpu_100",
    "efficientnet": "efficientnet_b0 efficientnet_es efficientnet_blur_b0",
    "efficientnet_lite": "efficientnet_lite0 tf_efficientnet_lite0",
    "efficientnetv2": "efficientnetv2_rw_t tf_efficientnetv2_b0",
    "tf_efficientnet": "tf_efficientnet_b0",
    "regnetx": "regnetx_002",
    "regnety": "regnety_002",
    "regnetz": "regnetz_005",
    "repvgg": "repvgg_a0 repvgg_b1g4",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42b",
    "spnasnet": "spnasnet_100",
    "fbnet": "fbnetc_100 fbnetv3_b",
    "lcnet": "lcnet_035 lcnet_100",
    "tinynet": "tinynet_e tinynet_c",
    "xception": "xception41 legacy_xception xception41p",
    "vgg_bn": "vgg11_bn vgg16_bn",
    "hgnet": "hgnetv2_b0 hgnet_tiny",
    "mobileone": "mobileone_s0",
    "repvit": "repvit_m0_9",
    "starnet": "starnet_s050",
    "fasternet": "fasternet_t0",
}
CLASSES = 10


def networks() -> dict[str, str]:
    """Every name -> its family, which of torchvision is the file that the network is made in."""
    found = {}
    for module in (models, models.segmentation):
        for name in models.list_models(module=module):
            family = models.get_model_builder(name).__module__.rpartition(".")[2]
            found[f"torchvision:{name}"] = family
    return found | {f"timm:{n}": family for family, names in TIMM.items() for n in names.split()}


def make(name: str) -> nn.Module:
    """The network of this name with random weights. Raises whatever its maker raises."""
    room, _, own = name.partition(":")
    if room == "timm":
        import timm

        return timm.create_model(own, pretrained=False, num_classes=CLASSES)
    options = {"weights": None, "num_classes": CLASSES}
    if own in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    if own in models.list_models(module=models.segmentation):
        options |= {"weights_backbone": None}
    return models.get_model(own, **options)
