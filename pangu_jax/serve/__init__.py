"""An endpoint in OpenAI's form over the engine; what wraps starlette, uvicorn and pydantic."""
