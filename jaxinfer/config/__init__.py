"""What the network is (`ModelConfig`) and how it runs (`RuntimeConfig`): frozen, validated, standard library only."""

from jaxinfer.config.errors import ConfigError as ConfigError
from jaxinfer.config.errors import UnsupportedModelError as UnsupportedModelError
from jaxinfer.config.errors import require as require
from jaxinfer.config.layers import WHOLE as WHOLE
from jaxinfer.config.layers import Activation as Activation
from jaxinfer.config.layers import AttentionConfig as AttentionConfig
from jaxinfer.config.layers import FeedForward as FeedForward
from jaxinfer.config.layers import LayerConfig as LayerConfig
from jaxinfer.config.layers import LinearConfig as LinearConfig
from jaxinfer.config.layers import MlpConfig as MlpConfig
from jaxinfer.config.layers import MoeConfig as MoeConfig
from jaxinfer.config.layers import QkNorm as QkNorm
from jaxinfer.config.layers import RankConfig as RankConfig
from jaxinfer.config.layers import RopeConfig as RopeConfig
from jaxinfer.config.layers import RopeKind as RopeKind
from jaxinfer.config.layers import RouterConfig as RouterConfig
from jaxinfer.config.model import DTypeName as DTypeName
from jaxinfer.config.model import ModelConfig as ModelConfig
from jaxinfer.config.parallel import ParallelConfig as ParallelConfig
from jaxinfer.config.runtime import MAX_NUM_BATCHED_TOKENS as MAX_NUM_BATCHED_TOKENS
from jaxinfer.config.runtime import MAX_NUM_SEQS as MAX_NUM_SEQS
from jaxinfer.config.runtime import Dtype as Dtype
from jaxinfer.config.runtime import KvCacheDtype as KvCacheDtype
from jaxinfer.config.runtime import Quantization as Quantization
from jaxinfer.config.runtime import RuntimeConfig as RuntimeConfig
from jaxinfer.config.runtime import context_length as context_length
