
webbefore-1	moved 