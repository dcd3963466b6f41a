// BullMQ: so many no-op jobs by `addBulk`, a worker in a process of its own. Prints jobs a second.
//     node bullmq.mjs redis://127.0.0.1:6379 JOBS CONCURRENCY SUBMITTERS
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";

const [url, jobs, concurrency, submitters] = process.argv.slice(2).map((word, place) => (place ? Number(word) : word));
const connection = new Redis(url, { maxRetriesPerRequest: null });
const MOST_IN_A_CALL = 1000;

if (process.send) {
  // The worker: says when it is ready, and when the last job has ended.
  let ended = 0;
  const worker = new Worker("bench", async () => {}, { connection, concurrency });
  worker.on("completed", () => {
    ended += 1;
    if (ended === jobs) process.send("ended");
  });
  await worker.waitUntilReady();
  process.send("ready");
} else {
  const child = fork(fileURLToPath(import.meta.url), process.argv.slice(2));
  const told = (word) => new Promise((done) => child.on("message", (message) => message === word && done()));
  const ended = told("ended");
  await told("ready");
  const queue = new Queue("bench", { connection });
  await queue.waitUntilReady();
  const begun = process.hrtime.bigint();
  let left = jobs;
  const submitter = async () => {
    while (left > 0) {
      const count = Math.min(MOST_IN_A_CALL, left);
      left -= count;
      await queue.addBulk(Array.from({ length: count }, () => ({ name: "noop", data: {} })));
    }
  };
  await Promise.all(Array.from({ length: submitters }, submitter));
  await ended;
  console.log(jobs / (Number(process.hrtime.bigint() - begun) / 1e9));
  child.kill("SIGKILL");
  process.exit(0);
}
