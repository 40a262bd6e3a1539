"""`python -m vine_mini.integrations.trl` without vLLM and CUDA: TRL's client sends no weights to the server."""

import sys

from trl.generation import vllm_client, vllm_generation

from vine_mini.integrations.trl import __main__ as command
from vine_mini.integrations.trl import lost

for module in (vllm_client, vllm_generation):
    module.is_vllm_available = lambda *_, **__: True
vllm_client.VLLMClient.init_communicator = lambda self, device: None
vllm_client.VLLMClient.update_named_params = lambda self, metadata, parameters: print(len(list(parameters)), "tensors")
command.find_spec = lambda name: name
lost.ANSWER_SECONDS, lost.LOOK_SECONDS = 3.0, 1.0  # so that a test does not wait for 45 seconds

if __name__ == "__main__":
    sys.exit(command.main())
