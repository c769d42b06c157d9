// Calls ListServices with grpc-js: call.js ADDRESS CA CERT KEY NAME, "-" for none.
// Prints the answer in hexadecimal, or ends with 3 and prints why there is none.
const fs = require("fs");
const grpc = require("@grpc/grpc-js");

const [address, ca, cert, key, name] = process.argv.slice(2);
const read = (path) => (path === "-" ? null : fs.readFileSync(path));
const credentials = grpc.credentials.createSsl(read(ca), read(key), read(cert));
const options = name === "-" ? {} : { "grpc.ssl_target_name_override": name };
const client = new grpc.Client(address, credentials, options);
// Bytes in, bytes out; an empty message asks for everything.
const same = (bytes) => bytes;
const deadline = { deadline: Date.now() + 10_000 };
const path = "/quorate.v1.Registry/ListServices";
client.makeUnaryRequest(path, same, same, Buffer.alloc(0), deadline, (error, answer) => {
  console.log(error ? `${grpc.status[error.code]} ${error.details}` : answer.toString("hex"));
  client.close();
  process.exitCode = error ? 3 : 0;
});
