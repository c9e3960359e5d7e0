"""Products of rows with their experts; `api` has the contract."""

from pallas_kernels.grouped_matmul.api import grouped_matmul as grouped_matmul
from pallas_kernels.grouped_matmul.api import grouped_matmul_of_choice as grouped_matmul_of_choice
