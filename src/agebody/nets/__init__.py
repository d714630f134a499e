"""Networks of human mesh recovery: from the picture of a person, or from keypoints, to a body of any age."""

from agebody.nets.regressor import Prediction, Regressor, read_prediction

__all__ = ["Prediction", "Regressor", "read_prediction"]
