"""The words that options, files and the mathematics share. Nothing is loaded for them."""

FLOATS = ("float64", "float32", "float16", "bfloat16")
#: What happens to a score on its way to a weight: the taps of ONNX's Attention, in order.
STAGES = ("scores", "softcapped", "masked", "weights")
LAYOUTS = ("bhld", "blhd")
POLARITIES = ("keep", "ignore")
ROPE_STYLES = ("half", "interleaved")
#: Libraries that take a mask each in their own way.
DIALECTS = ("sdpa", "mha", "onnx", "hf", "flash")
