# The playground on the CPU; `compose.yaml` says how to start it. Runs are mounted, not copied.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY vae_lab vae_lab
COPY hydra_plugins hydra_plugins
COPY conf conf
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir ".[play]" \
    && useradd --create-home player
USER player
WORKDIR /home/player
ENV STREAMLIT_SERVER_HEADLESS=true
EXPOSE 8501
# It listens on every address of the container, as only then a published port reaches it. Publish that port on 127.0.0.1
# alone, `-p 127.0.0.1:8501:8501`, as `compose.yaml` does: the playground asks nobody who they are.
ENTRYPOINT ["vae-lab-play", "address=0.0.0.0"]
