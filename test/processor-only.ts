import { preferDevice } from "../src/ggml/preferred-device.js";

/** Files that compute on the processor share a process with llama.cpp: neither needs a GPU's driver, and both take the same build. */
if (process.env.COPPICE_TEST_DEVICES === "cpu") preferDevice("cpu");
