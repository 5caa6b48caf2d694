"""Networks for 32x32 images, by the name that ``cifar.py -a`` takes."""

from models.cifar.densenet import densenet
from models.cifar.resnet import resnet
from models.cifar.vgg import vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn

ARCHS = {
    "vgg11_bn": vgg11_bn,
    "vgg13_bn": vgg13_bn,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    "resnet": resnet,
    "densenet": densenet,
}
