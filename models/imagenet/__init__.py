"""Networks for 224x224 images, by the name that ``imagenet.py -a`` takes."""

from models.imagenet.densenet import densenet121_nr, densenet169_nr
from models.imagenet.resnet import (
    resnet18_nr,
    resnet34_nr,
    resnet50_nr,
    resnet101_nr,
    resnet152_nr,
)
from models.imagenet.vgg import vgg16_nr, vgg19_nr, vgg_nr

ALIASES = {"vgg_nr": "vgg16_nr"}  # a network is named by its full name in files
ARCHS = {
    "resnet18_nr": resnet18_nr,
    "resnet34_nr": resnet34_nr,
    "resnet50_nr": resnet50_nr,
    "resnet101_nr": resnet101_nr,
    "resnet152_nr": resnet152_nr,
    "densenet121_nr": densenet121_nr,
    "densenet169_nr": densenet169_nr,
    "vgg16_nr": vgg16_nr,
    "vgg19_nr": vgg19_nr,
    "vgg_nr": vgg_nr,
}
