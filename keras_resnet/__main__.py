"""`python -m keras_resnet` is the command keras-resnet."""

import sys

from keras_resnet.cli import main

sys.exit(main())
