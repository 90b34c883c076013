#!/usr/bin/env node
// Native calls run on libuv's threads, four where nothing is said: quantizing wants all cores. This is read once, when the first
// thread starts, which loading a module does. So it is set here, before any is loaded.
process.env.UV_THREADPOOL_SIZE ??= String(Math.max(4, require("node:os").availableParallelism() + 2));
import("../dist/cli/main.js");
