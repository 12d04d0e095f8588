from serve_app.cli.main import app

app(prog_name="parallel-sdxl")
