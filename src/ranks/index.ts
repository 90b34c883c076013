export { type Message, type Numbers, Ranks } from "./ranks.js";
