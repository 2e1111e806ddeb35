"""Operators of TFLite that compute and do nothing else, and their names in ONNX.

Operators of a file's own (CUSTOM), those that keep variables or tables beside the graph, and those
that only compilers use are left out, and refused.
"""

from __future__ import annotations

_SAME = (  # TFLite's name and ONNX's differ in case alone
    "Abs Add Cast Ceil Cos Div Elu Equal Exp Floor Gather Gelu Greater Less Log Mul Neg Pad Pow "
    "Range Relu Reshape Round Shape Sign Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile "
    "Transpose"
)
_NAMES = {
    "ADD_N": "Sum", "ARG_MAX": "ArgMax", "ARG_MIN": "ArgMin", "ATAN2": "Atan2",
    "AVERAGE_POOL_2D": "AveragePool", "BATCH_MATMUL": "MatMul",
    "BATCH_TO_SPACE_ND": "BatchToSpace", "BIDIRECTIONAL_SEQUENCE_LSTM": "LSTM",
    "BIDIRECTIONAL_SEQUENCE_RNN": "RNN", "BITCAST": "BitCast", "BITWISE_XOR": "BitwiseXor",
    "BROADCAST_ARGS": "BroadcastShapes", "BROADCAST_TO": "Expand", "BUCKETIZE": "Bucketize",
    "COMPLEX_ABS": "ComplexAbs", "CONCATENATION": "Concat", "CONV_2D": "Conv", "CONV_3D": "Conv",
    "CONV_3D_TRANSPOSE": "ConvTranspose", "CUMSUM": "CumSum", "DEPTHWISE_CONV_2D": "Conv",
    "DEPTH_TO_SPACE": "DepthToSpace", "DEQUANTIZE": "DequantizeLinear", "DILATE": "Dilate",
    "DYNAMIC_UPDATE_SLICE": "ScatterND", "EMBEDDING_LOOKUP": "Gather", "EXPAND_DIMS": "Unsqueeze",
    "FAKE_QUANT": "FakeQuant", "FILL": "ConstantOfShape", "FLOOR_DIV": "FloorDiv",
    "FLOOR_MOD": "Mod", "FULLY_CONNECTED": "Gemm", "GATHER_ND": "GatherND",
    "GREATER_EQUAL": "GreaterOrEqual", "HARD_SWISH": "HardSwish", "IF": "If", "IMAG": "Imag",
    "L2_NORMALIZATION": "LpNormalization", "L2_POOL_2D": "LpPool", "LEAKY_RELU": "LeakyRelu",
    "LESS_EQUAL": "LessOrEqual", "LOCAL_RESPONSE_NORMALIZATION": "LRN", "LOGICAL_AND": "And",
    "LOGICAL_NOT": "Not", "LOGICAL_OR": "Or", "LOGISTIC": "Sigmoid", "LOG_SOFTMAX": "LogSoftmax",
    "LSTM": "LSTM", "MATRIX_DIAG": "MatrixDiag", "MATRIX_SET_DIAG": "MatrixSetDiag",
    "MAXIMUM": "Max", "MAX_POOL_2D": "MaxPool", "MEAN": "ReduceMean", "MINIMUM": "Min",
    "MIRROR_PAD": "Pad", "MULTINOMIAL": "Multinomial",
    "NON_MAX_SUPPRESSION_V4": "NonMaxSuppression", "NON_MAX_SUPPRESSION_V5": "NonMaxSuppression",
    "NOT_EQUAL": "NotEqual", "ONE_HOT": "OneHot", "PACK": "Concat", "PADV2": "Pad",
    "PRELU": "PRelu", "QUANTIZE": "QuantizeLinear", "RANDOM_STANDARD_NORMAL": "RandomNormal",
    "RANDOM_UNIFORM": "RandomUniform", "RANK": "Size", "REAL": "Real", "REDUCE_ALL": "ReduceAll",
    "REDUCE_ANY": "ReduceAny", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd", "RELU6": "Clip", "RELU_0_TO_1": "Clip", "RELU_N1_TO_1": "Clip",
    "RESIZE_BILINEAR": "Resize", "RESIZE_NEAREST_NEIGHBOR": "Resize",
    "REVERSE_SEQUENCE": "ReverseSequence", "REVERSE_V2": "Reverse", "RFFT2D": "DFT",
    "RIGHT_SHIFT": "BitShift", "RNN": "RNN", "RSQRT": "Rsqrt", "SCATTER_ND": "ScatterND",
    "SEGMENT_SUM": "SegmentSum", "SELECT": "Where", "SELECT_V2": "Where",
    "SPACE_TO_BATCH_ND": "SpaceToBatch", "SPACE_TO_DEPTH": "SpaceToDepth",
    "SPARSE_TO_DENSE": "ScatterND", "SPLIT_V": "Split", "SQUARE": "Square",
    "SQUARED_DIFFERENCE": "SquaredDifference", "STRIDED_SLICE": "Slice", "SUM": "ReduceSum",
    "SVDF": "SVDF", "TOPK_V2": "TopK", "TRANSPOSE_CONV": "ConvTranspose",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN": "RNN",
    "UNIQUE": "Unique", "UNPACK": "Split", "UNSORTED_SEGMENT_MAX": "SegmentMax",
    "UNSORTED_SEGMENT_MIN": "SegmentMin", "UNSORTED_SEGMENT_PROD": "SegmentProd",
    "UNSORTED_SEGMENT_SUM": "SegmentSum", "WHERE": "NonZero", "WHILE": "Loop",
    "ZEROS_LIKE": "ZerosLike",
}  # fmt: skip

# TFLite's name → ONNX's, of what is run here.
OPERATORS = {name.upper(): name for name in _SAME.split()} | _NAMES

# Operations that an operator applies to its own result, by their number in the file.
FUSED = {0: "", 1: "Relu", 2: "Clip", 3: "Clip", 4: "Tanh", 5: "Sign"}
# Where the operands of ONNX's operator are among those of the file's, where they are elsewhere.
MOVED = {"TRANSPOSE_CONV": (2, 1), "EMBEDDING_LOOKUP": (1, 0)}
DRAWING = frozenset({"RandomNormal", "RandomUniform", "Multinomial"})
REMEDY = {
    "CUSTOM": "convert the model again with built-in operators alone",
    "DELEGATE": "give the file from before it was compiled for a device",
}
VARIABLES = frozenset(
    {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE", "HASHTABLE_FIND",
     "HASHTABLE_IMPORT", "HASHTABLE_SIZE", "HASHTABLE_LOOKUP"}
)  # fmt: skip
