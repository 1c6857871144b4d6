"""An OpenAI-compatible endpoint over the engine, on starlette, uvicorn and pydantic."""
