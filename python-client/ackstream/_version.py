"""The one version of crate, wheel, image and changelog."""

VERSION = "0.1.0"
