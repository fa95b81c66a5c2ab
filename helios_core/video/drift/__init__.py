"""How a film changes on its way: figures of every frame, of every chunk, and of its beginning against its end."""
