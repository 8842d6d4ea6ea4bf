"""Which public weights load into which network. Pure data: nothing of weight is imported here."""

from __future__ import annotations

from typing import Any

from keras_resnet.architecture import Architecture, get_architecture

CIFAR10_FILES: dict[str, str] = {
    "resnet8": "fe2f1929a91e1eaac1219fe5bafae933ea3cb4a42e3355d5a038caca9b79d416",
    "resnet20": "7dea59f8adcad9a92c8010e6ba4c5a0f2825d327734008c5b0d9fa11a18a9614",
    "resnet56": "6040828a0da804bb6c2d1d7b4bb989e84050dc43803982a1e6a543f4b541b42e",
}
"""Registry name to the SHA-256 of the file that comes with this package."""

KERAS_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"

KERAS_FILES: dict[str, tuple[str, str, str]] = {
    "resnet50": (
        "resnet50",
        "2cb95161c43110f7111970584f804107",
        "4d473c1dd8becc155b73f8504c6f6626",
    ),
    "resnet101": (
        "resnet101",
        "f1aeb4b969a6efcfb50fad2f0c20cfc5",
        "88cf7a10940856eca736dc7b7e228a21",
    ),
    "resnet152": (
        "resnet152",
        "100835be76be38e30d865e96f2aaae62",
        "ee4c566cf9a93f14d82f913c2dc6dd0c",
    ),
    "resnet50_v2": (
        "resnet50v2",
        "3ef43a0b657b3be2300d5770ece849e0",
        "fac2f116257151a9d068a22e544a4917",
    ),
    "resnet101_v2": (
        "resnet101v2",
        "6343647c601c52e1368623803854d971",
        "c0ed64b8031c3730f411d2eb4eea35b5",
    ),
    "resnet152_v2": (
        "resnet152v2",
        "a49b44d1979771252814e80f8ec446f9",
        "ed17cf2e0169df9d443503ef94b23b33",
    ),
}
"""Registry name to keras.applications' file name and its MD5, with the classifier and without."""

TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("resnet18", "resnet34")},
    **{f"resnet{depth}": (f"resnet{depth}_v1_5", {}) for depth in (50, 101, 152)},
    **{f"resnet{depth}d": (f"resnet{depth}d", {}) for depth in (18, 34, 50, 101, 152, 200)},
    **{
        name: (name, {})
        for name in (
            "resnext50_32x4d",
            "resnext101_32x8d",
            "resnext101_64x4d",
            "wide_resnet50_2",
            "wide_resnet101_2",
            "seresnet18",
            "seresnet34",
            "seresnet50",
            "seresnet101",
            "seresnet152",
            "seresnext50_32x4d",
            "ecaresnet50d",
            "resnetrs50",
            "resnetrs101",
            "resnetrs152",
            "resnetrs200",
            "resnetrs270",
            "resnetblur50",
        )
    },
    # Relatives that are a row of the table but for an attribute or two.
    "resnet26": ("resnet50_v1_5", {"blocks": (2, 2, 2, 2)}),
    "resnet26d": ("resnet50d", {"blocks": (2, 2, 2, 2)}),
    "resnet50_gn": ("resnet50_v1_5", {"norm": "group"}),
    **{f"resnet{depth}c": (f"resnet{depth}d", {"projection": "conv"}) for depth in (50, 101, 152)},
    **{
        f"resnet{depth}s": (f"resnet{depth}d", {"projection": "conv", "stem_channels": 128})
        for depth in (50, 101, 152)
    },
    "resnext50d_32x4d": ("resnet50d", {"cardinality": 32, "base_width": 4}),
    "resnext101_32x4d": ("resnext101_32x8d", {"base_width": 4}),
    "resnext101_32x16d": ("resnext101_32x8d", {"base_width": 16}),
    "resnext101_32x32d": ("resnext101_32x8d", {"base_width": 32}),
    "seresnet152d": ("resnet152d", {"attention": "se"}),
    "seresnext101_32x4d": ("resnext101_32x8d", {"base_width": 4, "attention": "se"}),
    "seresnext101_32x8d": ("resnext101_32x8d", {"attention": "se"}),
    "seresnext101_64x4d": ("resnext101_64x4d", {"attention": "se"}),
    "seresnext101d_32x8d": (
        "resnet101d",
        {"cardinality": 32, "base_width": 8, "attention": "se"},
    ),
    "ecaresnet101d": ("resnet101d", {"attention": "eca"}),
    "ecaresnet269d": ("ecaresnet50d", {"blocks": (3, 30, 48, 8)}),
    "resnetrs350": ("resnetrs270", {"blocks": (4, 36, 72, 4)}),
    "resnetrs420": ("resnetrs270", {"blocks": (4, 44, 87, 4)}),
}
"""timm's name of an architecture to the row of our table, and what differs from it."""


TIMM_TAGS: dict[str, tuple[str, ...]] = {
    name: tuple(tags.split())
    for name, tags in {
        "resnet18": "a1_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k "
        "gluon_in1k tv_in1k",
        "resnet34": "a1_in1k a2_in1k a3_in1k bt_in1k gluon_in1k ra4_e3600_r224_in1k tv_in1k",
        "resnet50": "a1_in1k a1h_in1k a2_in1k a3_in1k am_in1k b1k_in1k b2k_in1k bamboo "
        "bt_in1k c1_in1k c2_in1k d_in1k fb_ssl_yfcc100m_ft_in1k "
        "fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k ram_in1k tv2_in1k tv_in1k",
        "resnet101": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
        "resnet152": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
        "resnet18d": "ra2_in1k ra4_e3600_r224_in1k",
        "resnet34d": "ra2_in1k",
        "resnet50d": "a1_in1k a2_in1k a3_in1k gluon_in1k ra2_in1k ra4_e3600_r224_in1k",
        "resnet101d": "gluon_in1k ra2_in1k",
        "resnet152d": "gluon_in1k ra2_in1k",
        "resnet200d": "ra2_in1k",
        "resnext50_32x4d": "a1_in1k a1h_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k "
        "fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k tv2_in1k tv_in1k",
        "resnext101_32x8d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k fb_wsl_ig1b_ft_in1k "
        "tv2_in1k tv_in1k",
        "resnext101_64x4d": "c1_in1k gluon_in1k tv_in1k",
        "wide_resnet50_2": "racm_in1k tv2_in1k tv_in1k",
        "wide_resnet101_2": "tv2_in1k tv_in1k",
        "seresnet50": "a1_in1k a2_in1k a3_in1k ra2_in1k",
        "seresnext50_32x4d": "gluon_in1k racm_in1k",
        "ecaresnet50d": "miil_in1k",
        "resnetrs50": "tf_in1k",
        "resnetrs101": "tf_in1k",
        "resnetrs152": "tf_in1k",
        "resnetrs200": "tf_in1k",
        "resnetrs270": "tf_in1k",
        "resnetblur50": "bt_in1k",
        "resnet26": "bt_in1k",
        "resnet26d": "bt_in1k",
        "resnet50_gn": "a1h_in1k",
        "resnet50c": "gluon_in1k",
        "resnet101c": "gluon_in1k",
        "resnet152c": "gluon_in1k",
        "resnet50s": "gluon_in1k",
        "resnet101s": "gluon_in1k",
        "resnet152s": "gluon_in1k",
        "resnext50d_32x4d": "bt_in1k",
        "resnext101_32x4d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
        "resnext101_32x16d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k fb_wsl_ig1b_ft_in1k",
        "resnext101_32x32d": "fb_wsl_ig1b_ft_in1k",
        "seresnet152d": "ra2_in1k",
        "seresnext101_32x4d": "gluon_in1k",
        "seresnext101_32x8d": "ah_in1k",
        "seresnext101_64x4d": "gluon_in1k",
        "seresnext101d_32x8d": "ah_in1k",
        "ecaresnet101d": "miil_in1k",
        "ecaresnet269d": "ra2_in1k",
        "resnetrs350": "tf_in1k",
        "resnetrs420": "tf_in1k",
    }.items()
}
"""timm's name of an architecture to the training tags of its repositories on the hub."""


def from_timm(name: str) -> Architecture:
    """The architecture behind timm's name of it.

    Raises:
        ValueError: for a name that is not in `TIMM`.
    """
    try:
        row, changes = TIMM[name]
    except (KeyError, TypeError):
        raise ValueError(
            "Weights of this architecture of timm cannot be loaded; the ones that can are "
            f"{', '.join(TIMM)}. Received: {name!r}"
        ) from None
    architecture = get_architecture(row)
    return architecture.replace(name=name, **changes) if changes else architecture


def public_weights(name: str) -> list[str]:
    """Every name with which `from_pretrained` builds the network of a registry name."""
    found = [f"cifar10/{name}"] if name in CIFAR10_FILES else []
    found += [f"imagenet/{name}"] if name in KERAS_FILES else []
    for theirs, (ours, changes) in TIMM.items():
        if ours == name and not changes:
            found += [f"timm/{theirs}.{tag}" for tag in TIMM_TAGS.get(theirs, ())]
    return found
