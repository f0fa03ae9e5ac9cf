"""Every HTTP route of the stack, so that no path is spelled twice."""

# completions
COMPLETION_V1 = "/completion/v1"  # static batching
COMPLETION_V2 = "/completion/v2"  # continuous batching
CHAT_COMPLETION_V1 = "/chat_completion/v1"  # an OpenAI account
OPENAI_COMPLETIONS = "/v1/completions"
OPENAI_CHAT_COMPLETIONS = "/v1/chat/completions"
OPENAI_RESPONSES = "/v1/responses"
ANTHROPIC_MESSAGES = "/v1/messages"
ANTHROPIC_COUNT_TOKENS = "/v1/messages/count_tokens"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
OPENAI_MODELS = "/v1/models"

# what a server serves
MODEL_ID = "/model_id"

# what the gateway knows
EVENT_SERVER_STARTUP = "/event/server_startup"
EVENT_SERVER_SHUTDOWN = "/event/server_shutdown"
CB_AVAILABLE_MODELS = "/cb_server/available_models"
SB_AVAILABLE_MODELS = "/sb_server/available_models"
OPENAI_JUMPER_IS_AVAILABLE = "/openai_jumper/is_available"

# on every service
HEALTH = "/health"
READY = "/ready"
METRICS = "/metrics"
STATUS = "/status"
REQUESTS = "/requests"  # DELETE /requests/{id} cancels a request
