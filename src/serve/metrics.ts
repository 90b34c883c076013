import { Counter, Gauge, Histogram, Registry } from "prom-client";

const SECONDS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 40, 80, 160];

/** Metrics for Prometheus, under vLLM's names, so that its dashboards show this service. */
export class Metrics {
  readonly registry = new Registry();
  private readonly in = { registers: [this.registry] };
  readonly promptTokens = new Counter({ ...this.in, name: "vllm:prompt_tokens_total", help: "Prompt tokens read" });
  readonly generatedTokens = new Counter({ ...this.in, name: "vllm:generation_tokens_total", help: "Tokens written" });
  readonly cacheQueries = new Counter({
    ...this.in,
    name: "vllm:prefix_cache_queries_total",
    help: "Prompt tokens looked for in the cache",
  });
  readonly cacheHits = new Counter({
    ...this.in,
    name: "vllm:prefix_cache_hits_total",
    help: "Prompt tokens found in the cache",
  });
  readonly successes = new Counter({
    ...this.in,
    name: "vllm:request_success_total",
    help: "Requests answered",
    labelNames: ["finished_reason"],
  });
  readonly failures = new Counter({
    ...this.in,
    name: "coppice:request_failure_total",
    help: "Requests refused or failed",
    labelNames: ["status"],
  });
  readonly firstToken = this.histogram("vllm:time_to_first_token_seconds", "From a request to its first text");
  readonly betweenTokens = this.histogram("vllm:inter_token_latency_seconds", "Between two chunks of a text");
  readonly queueTime = this.histogram("vllm:request_queue_time_seconds", "From a request to its turn");
  readonly latency = this.histogram("vllm:e2e_request_latency_seconds", "From a request to the end of its answer");

  private histogram(name: string, help: string): Histogram {
    return new Histogram({ ...this.in, name, help, buckets: SECONDS });
  }

  /** Adds a number that is looked up at each collection. */
  gauge(name: string, help: string, value: () => number): void {
    new Gauge({
      ...this.in,
      name,
      help,
      collect() {
        this.set(value());
      },
    });
  }
}
