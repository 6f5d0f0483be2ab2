import {
  create,
  type DescMessage,
  type DescMethodUnary,
  fromJson,
  type Message,
  type MessageInitShape,
  type MessageShape,
  toJson,
} from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { HospitalService } from "../gen/vaccination/approval/v1/hospital_service_pb.js";
import { CounterService } from "../gen/vaccination/vaccinemgmt/v1/counter_service_pb.js";
import { RecallService } from "../gen/vaccination/vaccinemgmt/v1/recall_service_pb.js";
import { VaccinemgmtService } from "../gen/vaccination/vaccinemgmt/v1/vaccinemgmt_service_pb.js";
import { transport } from "./api.ts";
import { type Answer, type Ask, Asks } from "./asks.ts";
import { browser } from "./browser.ts";

const methods: DescMethodUnary[] = [HospitalService, CounterService, RecallService, VaccinemgmtService].flatMap(
  (service) =>
    service.methods.filter((method): method is typeof method & DescMethodUnary => method.methodKind === "unary"),
);

const nameOf = (method: DescMethodUnary) => `${method.parent.typeName}/${method.name}`;

async function send(ask: Ask): Promise<Message> {
  const method = methods.find((each) => nameOf(each) === ask.kind);
  if (!method) throw new ConnectError(`no method ${ask.kind}`, Code.Unimplemented);
  const { message } = await transport.unary(
    method,
    undefined,
    undefined,
    undefined,
    fromJson(method.input, ask.request),
  );
  return message;
}

/** What the staff are doing: writes that are under way, each repeated as it is until there is an answer. */
export const doing = new Asks<Message>({ storage: sessionStorage, send, ...browser });

/** Makes a call that changes something. `title` is what it is called on the screen. */
export async function perform<I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>,
  request: MessageInitShape<I>,
  title: string,
): Promise<Answer<MessageShape<O>>> {
  const message = toJson(method.input, create(method.input, request));
  const answer = await doing.ask({ id: crypto.randomUUID(), kind: nameOf(method), request: message, about: { title } });
  return answer as Answer<MessageShape<O>>;
}
